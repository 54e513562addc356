"""The trainer and the sampler on a CUDA device, against its measured ceilings and against what a user would write.

One random Qwen3 with the sizes of Qwen3-1.7B in bfloat16, adapters of rank 8 on all linears, wall clock, medians.
Usage: python -m benchmarks.gpu [--only training sampling]
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from pathlib import Path

import torch

from benchmarks.gpu_model import Ceilings, Report, big_base
from benchmarks.gpu_sampling import sampling
from benchmarks.gpu_training import training

SECTIONS = {"training": training, "sampling": sampling}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    wanted = parser.parse_args().only
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a CUDA device, and torch sees none")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    report = Report(Ceilings.measured())
    for name in wanted:
        with tempfile.TemporaryDirectory() as scratch:
            SECTIONS[name](report, big_base(Path(scratch)), Path(scratch))
        torch.cuda.empty_cache()
    report.print()


if __name__ == "__main__":
    main()
