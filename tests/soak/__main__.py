"""The long form: python -m tests.soak --minutes 60

Exit code 1 if something grows that nothing needs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from testing.tiny_models import save_tiny_model
from tests.soak.soak import run_trial


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rest", type=float, default=1.0, help="seconds between two rounds of a tenant")
    parser.add_argument("--keep", type=Path, help="a directory for data and logs; it is kept")
    options = parser.parse_args()

    def report(line: str) -> None:
        print(f"\r{line:<70}", end="", file=sys.stderr, flush=True)

    seconds = 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as temporary:
        directory = options.keep or Path(temporary)
        model_dir = save_tiny_model(directory / "model", "qwen3")
        trial = run_trial(
            model_dir, directory, seconds=seconds, every_s=min(60.0, seconds / 20), rest_s=options.rest, report=report
        )
    print(file=sys.stderr)
    print(trial.summary())
    sys.exit(1 if trial.faults else 0)


if __name__ == "__main__":
    main()
