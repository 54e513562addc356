"""The command line as its entry point runs it, against the client tests' platform."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from services.cli import main
from tests.client.loopback import KEY, LoopbackPlatform


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON value and nothing else."""
        return json.loads(self.out)


Run = Callable[..., Outcome]


@pytest.fixture
def platform() -> Iterator[LoopbackPlatform]:
    running = LoopbackPlatform()
    yield running
    running.close()


@pytest.fixture
def tinker_platform(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, platform: LoopbackPlatform
) -> Run:
    """Runs `tinker-platform` with arguments in an empty directory, connected to `platform` by the environment."""
    monkeypatch.setenv("TINKER_GRPC_URL", platform.url)
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, stdin: str = "") -> Outcome:
        monkeypatch.setattr("sys.argv", ["tinker-platform", *arguments])
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main.main()
        printed = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), printed.out, printed.err)

    return run


def words(line: str) -> Sequence[str]:
    return line.split()
