"""The long form: python -m tests.chaos --kills 1000 --seed 1

Exit code 1 if anything was lost, doubled or different.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.chaos.chaos import run_trial
from tests.model.tiny import save_tiny_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a directory for data and logs; it is kept")
    options = parser.parse_args()

    def report(line: str) -> None:
        print(f"\r{line:<70}", end="", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as temporary:
        directory = options.keep or Path(temporary)
        model_dir = save_tiny_model(directory / "model", "qwen3")
        trial = run_trial(model_dir, directory, kills=options.kills, seed=options.seed, report=report)
    print(file=sys.stderr)
    print(trial.summary())
    sys.exit(1 if trial.faults else 0)


if __name__ == "__main__":
    main()
