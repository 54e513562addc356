"""The one place that opens gRPC channels: a server on this machine is never reached through a proxy.

gRPC reads `http_proxy`, `https_proxy` and `grpc_proxy` from the environment, also for addresses of the loopback range,
which a proxy cannot reach.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import grpc

ChannelOption = tuple[str, str | int]


def open_channel(target: str, *, secure: bool = False, options: Sequence[ChannelOption] = ()) -> grpc.aio.Channel:
    """Opens a channel; it connects when it is first used.

    Args:
        target: host:port, [IPv6 address]:port, or unix:path.
        secure: whether to use TLS, with the system's certificates.
        options: gRPC's channel options.
    """
    if is_local(target):
        options = [*options, ("grpc.enable_http_proxy", 0)]
    if secure:
        return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(), options=options)
    return grpc.aio.insecure_channel(target, options=options)


def is_local(target: str) -> bool:
    """Whether a target is on this machine: a socket file, localhost, or an address that is loopback or unspecified."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    host = target.rpartition(":")[0].strip("[]").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified
