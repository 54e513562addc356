"""Child processes that do not outlive their parent."""

from __future__ import annotations

import asyncio
import ctypes
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

BAD_REQUEST_EXIT_CODE = 2
"""A process ends with this if what it was asked to do cannot be done: starting it again does not help."""

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Asks the kernel to end this process when its parent ends (Linux); runs between fork and exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


async def start(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, log: Path | None = None
) -> asyncio.subprocess.Process:
    """Starts a child; its output goes to the end of `log`, or to ours."""
    output = open(log, "ab") if log is not None else None  # noqa: SIM115, ASYNC230
    try:
        return await asyncio.create_subprocess_exec(
            *command,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    finally:
        if output is not None:
            output.close()


async def stop(process: asyncio.subprocess.Process, grace_s: float) -> None:
    """Ends a child: SIGTERM, and SIGKILL if it has not gone after `grace_s`."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), grace_s)
    except TimeoutError:
        process.kill()
        await process.wait()
