"""The long form: python -m tests.chaos --kills 1000 --seed 1

Exit code 1 if anything was lost, doubled or different; data and logs are kept then.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from testing.tiny_models import save_tiny_model
from tests.chaos.chaos import run_trial


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a directory for data and logs, kept in any case")
    options = parser.parse_args()

    def report(line: str) -> None:
        print(f"\r{line:<70}", end="", file=sys.stderr, flush=True)

    directory = options.keep or Path(tempfile.mkdtemp(prefix="chaos-"))
    print(f"data and logs: {directory}", file=sys.stderr)
    model_dir = save_tiny_model(directory / "model", "qwen3")
    trial = run_trial(model_dir, directory, kills=options.kills, seed=options.seed, report=report)
    print(file=sys.stderr)
    print(trial.summary())
    if trial.faults:
        sys.exit(1)
    if options.keep is None:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
