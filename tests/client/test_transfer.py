"""Files on their way: what a platform may not send, and what a directory may not hold."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tinker_client._download import download
from tinker_client._upload import AdapterFiles
from tinker_client.errors import InternalServerError
from tinker_proto.v1 import checkpoint_pb2


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "/etc/passwd", "a/b", "a\\b", "a\0"])
def test_a_platform_cannot_write_outside_the_directory(tmp_path: Path, name: str) -> None:
    transport: Any = None  # it comes to no call
    files = [checkpoint_pb2.File(name=name, size_bytes=1, sha256="0" * 64)]
    with pytest.raises(InternalServerError, match="not a file name"):
        asyncio.run(download(transport, files, tmp_path / "to", lambda name, offset: None, None))  # type: ignore[arg-type, return-value]
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_place_of_a_file_is_other_content(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    transport: Any = None
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    with pytest.raises(FileExistsError):
        asyncio.run(download(transport, [checkpoint_pb2.File(name="a", sha256=empty)], tmp_path, Any, None))


def test_an_adapter_is_a_directory_or_a_safetensors_file(tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "checkpoint-5").mkdir()
    found = AdapterFiles.find(tmp_path)
    assert found == AdapterFiles.find(tmp_path / "adapter_model.safetensors")
    (tmp_path / "other.json").write_bytes(b"x")
    assert AdapterFiles.find(found.weights, tmp_path / "other.json").config.name == "other.json"
    for path in (tmp_path / "README.md", tmp_path / "missing"):
        with pytest.raises(ValueError, match="neither an adapter's directory nor"):
            AdapterFiles.find(path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json"):
        AdapterFiles.find(tmp_path)
