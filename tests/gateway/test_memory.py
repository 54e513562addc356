"""A gateway's heap, looked at from inside a process of its own."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import ctypes, sys, threading
from services.gateway.malloc import give_freed_memory_back

if sys.argv[2] == "on":
    give_freed_memory_back()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
libc.free.argtypes = libc.fclose.argtypes = [ctypes.c_void_p]
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
libc.free(libc.malloc(8 << 20))  # from here on glibc would take blocks of up to 8 MiB from its heap
blocks = []
threads = [threading.Thread(target=lambda: blocks.append((libc.malloc(1000), libc.malloc(4 << 20)))) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
file = libc.fopen(sys.argv[1].encode(), b"w")
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc has what is set here")
@pytest.mark.parametrize("setting", ["on", "off"])
def test_threads_share_one_heap_and_large_blocks_are_outside_of_it(tmp_path: Path, setting: str) -> None:
    report = tmp_path / "malloc.xml"
    subprocess.run([sys.executable, "-c", PROGRAM, str(report), setting], check=True, timeout=60)
    text = report.read_text()
    mapped = int(text.rpartition('<total type="mmap" count="')[2].partition('"')[0])
    assert (text.count("<heap nr=") == 1) is (setting == "on")
    assert (mapped >= 8) is (setting == "on")
