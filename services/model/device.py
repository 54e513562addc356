"""The one thread that may touch the device, and how full the device is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_T = TypeVar("_T")


class DeviceThread:
    """Runs calls one after another on a thread of their own, so that asyncio never waits on torch."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")

    async def run(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Awaits `call` on the device thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, lambda: call(*args, **kwargs))

    def close(self) -> None:
        """Waits for the call under way and ends the thread."""
        self._executor.shutdown(wait=True, cancel_futures=True)


def memory_pressure(device: torch.device) -> float:
    """How short a GPU's memory is: 0 while a fifth of it is free, 1 when nothing is; always 0 on a CPU."""
    if device.type != "cuda":
        return 0.0
    free, total = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0.0, 1 - (free + cached) / total / 0.2)


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch or Python could not get the memory that it asked for."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def choose_device(setting: str) -> str:
    """The torch device of a `device` setting: auto is the GPU if there is one."""
    if setting != "auto":
        return setting
    return "cuda" if torch.cuda.is_available() else "cpu"
