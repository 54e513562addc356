"""Child processes that do not outlive their parent."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_DIE_WITH_PARENT = str(Path(__file__).with_name("die_with_parent.py"))


async def start(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, log: Path | None = None
) -> asyncio.subprocess.Process:
    """Starts a child; its output goes to the end of `log`, or to ours."""
    output = open(log, "ab") if log is not None else None  # noqa: SIM115, ASYNC230
    try:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, _DIE_WITH_PARENT, str(os.getpid()), *command),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
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
        async with asyncio.timeout(grace_s):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
