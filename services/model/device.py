"""The torch device of a worker and its memory."""

from __future__ import annotations

import torch


def memory_pressure(device: torch.device) -> float:
    """Shortage of a GPU's memory: 0 while a fifth of it is free, 1 when nothing is; always 0 on a CPU."""
    if device.type != "cuda":
        return 0.0
    free, total = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0.0, 1 - (free + cached) / total / 0.2)


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
