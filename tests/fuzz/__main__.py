"""The long form: python -m tests.fuzz --requests 10000 --seed 1

Exit code 1 if the platform or a bystander came to harm.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from testing.platform import Platform
from testing.tiny_models import save_tiny_model
from tests.fuzz.fuzz import run_trial


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a directory for data and logs; it is kept")
    options = parser.parse_args()

    def report(line: str) -> None:
        print(f"\r{line:<70}", end="", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as temporary:
        directory = options.keep or Path(temporary)
        platform = Platform(save_tiny_model(directory / "model", "qwen3"), directory / "data")
        platform.start()
        try:
            trial = asyncio.run(run_trial(platform, requests=options.requests, seed=options.seed, report=report))
        finally:
            platform.stop()
    print(file=sys.stderr)
    print(trial.summary())
    sys.exit(1 if trial.faults else 0)


if __name__ == "__main__":
    main()
