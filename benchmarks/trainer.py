"""The trainer's targets T1 to T7, each against its opponent in one run; prints one table.

CPU time of one thread; opponents take turns, and a ratio is the median of its repetitions, with the spread beside it.
Usage: python benchmarks/trainer.py [--quick] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from trainer_exactness import exactness
from trainer_head import head
from trainer_load import qwen
from trainer_memory import memory
from trainer_passes import many_tenants, new_shapes, packing, prefixes
from trainer_platform import whole_platform
from trainer_table import Targets


def sections(targets: Targets, scratch: Path, *, quick: bool) -> Mapping[str, Callable[[], None]]:
    """What is measured, in order."""
    source = qwen(scratch / "model")
    repeats = 3 if quick else 9
    return {
        "tenants": lambda: many_tenants(targets, source, repeats),
        "packing": lambda: packing(targets, source, 1 if quick else 5),
        "head": lambda: head(targets, scratch / "head", (1024,) if quick else (1024, 4096), repeats),
        "prefixes": lambda: prefixes(targets, source, repeats),
        "exactness": lambda: exactness(targets, source),
        "shapes": lambda: new_shapes(targets, source),
        "memory": lambda: memory(targets, source),
        "platform": lambda: whole_platform(targets, source, scratch, 30 if quick else 100, repeats),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, and the short head only")
    parser.add_argument("--only", nargs="+", default=(), help="sections, all if absent")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    targets = Targets()
    with tempfile.TemporaryDirectory() as scratch:
        for name, section in sections(targets, Path(scratch), quick=arguments.quick).items():
            if not arguments.only or name in arguments.only:
                section()
                gc.collect()
    targets.print()


if __name__ == "__main__":
    main()
