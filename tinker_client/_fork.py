"""Forks: gRPC is loaded so that a forked child never touches what its parent uses. Imported before gRPC.

gRPC has handlers of its own around a fork. They do not support grpc.aio: while another thread waits for a result they
crash the child. gRPC reads once, when it is loaded, whether it shall have them.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable

_SUPPORT = "GRPC_ENABLE_FORK_SUPPORT"


def at_fork(
    *,
    in_child: Callable[[], None],
    before: Callable[[], None] = lambda: None,
    in_parent: Callable[[], None] = lambda: None,
) -> None:
    """Has functions called around every fork of this process."""
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)


class ForkSafeLock:
    """A lock for a module that a forked child finds free, whoever held it in the parent."""

    def __init__(self) -> None:
        self._renew()
        at_fork(in_child=self._renew)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _renew(self) -> None:
        self._lock = threading.Lock()


def keep_for_ever(value: object) -> None:
    """Never destroys an object, also not at interpreter exit: in a child, that would write to its parent's sockets."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def load_grpc_without_fork_handlers() -> None:
    """Loads gRPC without its handlers, unless it is loaded already or the environment decides otherwise."""
    if "grpc" in sys.modules or _SUPPORT in os.environ:
        return
    os.environ[_SUPPORT] = "0"
    try:
        import grpc  # noqa: F401
    finally:
        del os.environ[_SUPPORT]  # other programs that this one starts decide for themselves


load_grpc_without_fork_handlers()
