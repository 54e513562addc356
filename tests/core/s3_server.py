"""A real S3 server in a process of its own, on loopback."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

BUCKET = "tinker"


@dataclass(frozen=True)
class S3Server:
    """One bucket of a server."""

    endpoint: str
    process: subprocess.Popen[str]

    @property
    def variables(self) -> Mapping[str, str]:
        """What a process needs in its environment."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }


@contextmanager
def serving_s3() -> Iterator[S3Server]:
    """Serves an empty bucket until the block ends."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        found = None
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        assert found is not None, "the S3 server did not start"
        endpoint = found[0]
        with urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")) as reply:
            assert reply.status == 200
        try:
            yield S3Server(endpoint, process)
        finally:
            process.kill()
