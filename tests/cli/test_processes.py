"""Children end with their parent, whatever ends it."""

from __future__ import annotations

import subprocess
import sys

import psutil

from testing.waiting import wait_until

PARENT = """
import asyncio, sys
from services.cli import processes

async def main() -> None:
    child = await processes.start([sys.executable, "-c", "import time; time.sleep(600)"])
    print(child.pid, flush=True)
    await child.wait()

asyncio.run(main())
"""


def test_a_child_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        wait_until(lambda: "time.sleep" in " ".join(child.cmdline()), what="the child's own program")
        parent.kill()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, what="its end")
