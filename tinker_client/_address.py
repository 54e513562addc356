"""The platform's address: `grpc://host:port`, or `grpcs://host:port` for TLS.

Read from `base_url=` or TINKER_GRPC_URL. TINKER_BASE_URL is the address of an HTTP front, for another SDK: never read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

DEFAULT_URL = "grpc://127.0.0.1:50051"
URL_VARIABLE = "TINKER_GRPC_URL"
_DEFAULT_PORTS = {"grpc": 50051, "grpcs": 443}


@dataclass(frozen=True)
class Address:
    """A gRPC server's address."""

    host: str
    port: int
    secure: bool

    @classmethod
    def parse(cls, url: str) -> Address:
        """Reads a URL; raises ValueError for anything but grpc://host:port and grpcs://host:port."""
        parts = urlsplit(url)
        problem = ""
        if parts.scheme in ("http", "https"):
            problem = "an HTTP address; this client speaks gRPC"
        elif parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
            problem = "not a server address"
        elif parts.path not in ("", "/") or parts.query or parts.fragment or parts.username:
            problem = "more than a host and a port"
        try:
            port = parts.port
        except ValueError:
            port, problem = None, "a port outside 0 to 65535"
        if problem or not parts.hostname:
            raise ValueError(
                f"base_url: must be grpc://host:port, or grpcs://host:port for TLS (got {url!r}: {problem})"
            )
        return cls(parts.hostname, port or _DEFAULT_PORTS[parts.scheme], parts.scheme == "grpcs")

    @classmethod
    def resolve(cls, base_url: str | None) -> Address:
        """The address of `base_url`, else of TINKER_GRPC_URL, else of a server on this machine."""
        return cls.parse(base_url or os.environ.get(URL_VARIABLE) or DEFAULT_URL)

    @property
    def target(self) -> str:
        """host:port as gRPC wants it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{'grpcs' if self.secure else 'grpc'}://{self.target}"
