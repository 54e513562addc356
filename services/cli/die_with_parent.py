"""Becomes another program that the kernel ends together with the process that started it (Linux).

Run as a script: `die_with_parent.py PARENT_PID COMMAND...`. Asking the kernel takes code between fork and exec; running
Python there deadlocks in a process that has used gRPC, so this small program asks on its own and then executes COMMAND.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Entry point."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit("the process that started this one has ended already")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
