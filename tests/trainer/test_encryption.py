"""Encrypted external weights: only the holder of a key reads them, and a trainer that cannot encrypt writes nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pyrage
import pytest

from services.core.errors import FailedPreconditionError, InvalidArgumentError
from services.model.adapter_config import AdapterConfig
from services.model.base import BaseModel
from services.model.manifest import Manifest
from services.trainer.engine.interface import RunExport
from services.trainer.engine.local import LocalTrainerEngine


@pytest.fixture
def export(load: Callable[..., BaseModel]) -> RunExport:
    engine = LocalTrainerEngine(load(), row_tokens=64)
    engine.create_run("r", AdapterConfig(4, seed=1))
    return engine.export_run("r")


def test_every_recipient_reads_what_would_have_been_written(export: RunExport, tmp_path: Path) -> None:
    for name in ("plain", "encrypted"):
        (tmp_path / name).mkdir()
    keys = [pyrage.x25519.Identity.generate() for _ in range(2)]
    export.write_checkpoint(tmp_path / "plain", "r:1", "external")
    export.write_checkpoint(tmp_path / "encrypted", "r:1", "external", [str(key.to_public()) for key in keys])
    plain = Manifest.read(tmp_path / "plain").files
    encrypted = Manifest.read(tmp_path / "encrypted")
    assert set(encrypted.files) == {f"{name}.age" for name in plain}
    assert {path.name for path in (tmp_path / "encrypted").iterdir()} == {*encrypted.files, "checkpoint.json"}
    for name in plain:
        content = encrypted.verified(tmp_path / "encrypted", f"{name}.age").read_bytes()
        for key in keys:
            assert pyrage.decrypt(content, [key]) == (tmp_path / "plain" / name).read_bytes()
        with pytest.raises(pyrage.DecryptError):
            pyrage.decrypt(content, [pyrage.x25519.Identity.generate()])


def test_what_cannot_be_encrypted_is_refused_before_anything_is_written(
    export: RunExport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidArgumentError, match=r"age_encryption_recipients\[0\]: must be"):
        export.write_checkpoint(tmp_path, "r:1", "external", ["age1" + "q" * 58])
    key = str(pyrage.x25519.Identity.generate().to_public())
    monkeypatch.setitem(sys.modules, "pyrage", None)
    with pytest.raises(FailedPreconditionError, match=r"pyrage.*pip install") as missing:
        export.write_checkpoint(tmp_path, "r:1", "external", [key])
    assert missing.value.reason == "AGE_NOT_INSTALLED"
    assert not list(tmp_path.iterdir())
