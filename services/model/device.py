"""The torch device of a worker and its memory."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def memory_pressure(device: torch.device) -> float:
    """Shortage of a GPU's memory: 0 while a fifth of it is free, 1 when nothing is; always 0 on a CPU."""
    if device.type != "cuda":
        return 0.0
    free, total = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0.0, 1 - (free + cached) / total / 0.2)


def free_bytes(device: torch.device) -> int:
    """Bytes that computing may take on a device now: most of what is free, on a CPU half, for others use it too."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)) * 4 // 5
    return _available_bytes() // 2


def _available_bytes() -> int:
    """Of the machine and of the control group (Linux, version 2) that this process is in."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError):
        available = next(line for line in _MEMINFO.read_text().splitlines() if line.startswith("MemAvailable:"))
        found.append(int(available.split()[1]) * 1024)
    with suppress(OSError, ValueError):  # ValueError: "max", no limit
        found.append(int((_CGROUP / "memory.max").read_text()) - int((_CGROUP / "memory.current").read_text()))
    return max(0, min(found))


def is_out_of_memory(error: Exception) -> bool:
    """True if an allocation of torch's or Python's failed."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def choose_device(setting: str) -> str:
    """The torch device of a `device` setting: auto is the GPU if there is one."""
    if setting != "auto":
        return setting
    return "cuda" if torch.cuda.is_available() else "cpu"
