"""The tokenizer comes from the platform, is kept by content, and needs no access to the model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import tinker_client as tinker
from tests.client.loopback import LoopbackPlatform
from tests.client.toy_operations import MODEL
from tinker_client import _tokenizer
from tinker_client.errors import InternalServerError


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[LoopbackPlatform]:
    directory = tmp_path / "model"
    directory.mkdir()
    tokenizer = Tokenizer(models.WordLevel({"hello": 0, "world": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"})
    )
    running = LoopbackPlatform(tokenizer_directory=directory)
    yield running
    running.close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tinker-platform" / "tokenizers"


def kept_files(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*/*"))


async def test_it_is_fetched_once_and_works(
    platform: LoopbackPlatform, service: tinker.ServiceClient, cache: Path
) -> None:
    platform.refuse_before["GetTokenizer"].append(grpc.StatusCode.UNAVAILABLE)
    training = service.create_lora_training_client(MODEL)
    tokenizer = training.get_tokenizer()
    assert tokenizer.encode("world hello other") == [1, 0, 2]
    sampler = service.create_sampling_client(base_model=MODEL)
    assert sampler.get_tokenizer() is tokenizer
    assert await training.get_tokenizer_async() is tokenizer
    assert await sampler.get_tokenizer_async() is tokenizer
    assert platform.calls["GetTokenizer"] == 2
    assert kept_files(cache) == ["tokenizer.json", "tokenizer_config.json"]


def test_files_are_kept_under_their_content_and_appear_whole(tmp_path: Path) -> None:
    first = _tokenizer.store({"a": b"1", "b": b"2"}, tmp_path)
    assert _tokenizer.store({"b": b"2", "a": b"1"}, tmp_path) == first
    assert {path.name: path.read_bytes() for path in first.iterdir()} == {"a": b"1", "b": b"2"}
    others = [{"a": b"1"}, {"a": b"1", "b": b"3"}, {"a": b"12"}, {"a": b"", "b": b"12"}]
    assert len({first, *(_tokenizer.store(files, tmp_path) for files in others)}) == 5
    assert len(list(tmp_path.iterdir())) == 5  # nothing half-made stays behind


def test_files_of_subdirectories_keep_their_relative_names(tmp_path: Path) -> None:
    directory = _tokenizer.store(
        {"chat_template.jinja": b"1", "additional_chat_templates/tool_use.jinja": b"2"}, tmp_path
    )
    assert (directory / "chat_template.jinja").read_bytes() == b"1"
    assert (directory / "additional_chat_templates" / "tool_use.jinja").read_bytes() == b"2"


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "a//b", "a/../../b", "a/", "a\\b", "C:b", "a\0", "..", ".", ""]
)
def test_a_file_name_that_leaves_the_directory_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InternalServerError, match="not a relative file name"):
        _tokenizer.store({name: b"x"}, tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_a_platform_that_refuses_is_quoted(
    platform: LoopbackPlatform, service: tinker.ServiceClient, cache: Path
) -> None:
    platform.refuse_before["GetTokenizer"].append(grpc.StatusCode.NOT_FOUND)
    with pytest.raises(tinker.NotFoundError):
        service.create_sampling_client(base_model="toy/other").get_tokenizer()
