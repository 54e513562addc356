"""Tokenizer files: the model directory's own, byte for byte, to clients and to merged models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from services.gateway.http.openai.text import ModelText
from services.model.adapter_config import AdapterConfig
from services.model.base import BaseModel, load_base_model
from services.model.tokenizer_files import PATTERNS, read_files
from services.sampler.engine.merged_model import write_merged
from testing.rows import perturbed_adapter
from testing.tiny_models import save_tiny_model

TEXT = "w5 w7 </s> w9"
TEMPLATE = "{% for m in messages %}w9 {{ m.content }} {% endfor %}"


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}, indent=1))


def loaded(directory: Path) -> BaseModel:
    return load_base_model(str(directory), name="tiny", device="cpu")


def written(files: Mapping[str, bytes], directory: Path) -> Path:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def legacy_llama(directory: Path) -> None:
    """A tokenizer.json whose pre-tokenizer transformers replaces."""
    edit(directory / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", legacy=True, unk_token="<pad>")
    content = json.loads((directory / "tokenizer.json").read_text())
    content["model"] = {
        "type": "BPE",
        "vocab": {"<pad>": 0, "<s>": 1, "</s>": 2, "\u2581": 3, "w": 4, "5": 5, "7": 6, "9": 7, "\u2581w": 8},
        "merges": [["\u2581", "w"]],
        "unk_token": "<pad>",
    }
    (directory / "tokenizer.json").write_text(json.dumps(content))


def named_templates_in_configuration(directory: Path) -> None:
    templates = [{"name": "tool_use", "template": "w1"}, {"name": "default", "template": TEMPLATE}]
    edit(directory / "tokenizer_config.json", chat_template=templates)


def named_templates_in_files(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool_use.jinja").write_text("w1")


def vocabulary_files(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    (directory / "vocab.json").write_text(json.dumps({"w": 0, "5": 1, "w5": 2, "<|endoftext|>": 3}))
    (directory / "merges.txt").write_text("#version: 0.2\nw 5\n")


def class_by_the_models_configuration(directory: Path) -> None:
    (directory / "tokenizer_config.json").unlink()


@pytest.mark.parametrize(
    "change",
    [
        legacy_llama,
        named_templates_in_configuration,
        named_templates_in_files,
        vocabulary_files,
        class_by_the_models_configuration,
    ],
)
def test_clients_and_merged_models_have_the_models_own_tokenizer(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    model = save_tiny_model(tmp_path / "model", "llama")
    change(model)
    base, own = loaded(model), AutoTokenizer.from_pretrained(model)
    kept = read_files(model, PATTERNS)
    merged = tmp_path / "merged"
    merged.mkdir()
    write_merged(merged, base, perturbed_adapter(base, AdapterConfig(2, seed=1)))
    client = written(base.tokenizer_files.for_clients, tmp_path / "client")
    assert read_files(client, PATTERNS) == read_files(merged, PATTERNS) == kept
    for directory in (client, merged):
        theirs = AutoTokenizer.from_pretrained(directory)
        assert (type(theirs), theirs.chat_template) == (type(own), own.chat_template)
        assert theirs.encode(TEXT) == own.encode(TEXT)
    assert ModelText(base.tokenizer_files.resaved).tokens(TEXT) == own.encode(TEXT)


@pytest.mark.parametrize("change", [named_templates_in_configuration, named_templates_in_files])
def test_of_several_chat_templates_chats_get_the_default(tmp_path: Path, change: Callable[[Path], None]) -> None:
    change(save_tiny_model(tmp_path, "llama"))
    text = ModelText(loaded(tmp_path).tokenizer_files.resaved)
    assert text.chat_tokens([{"role": "user", "content": "w5"}], {}) == [9, 5]


def test_what_is_no_part_of_the_tokenizer_stays_behind(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, "llama")
    for name in ("README.md", "tokenizer.py", "adapter_model.safetensors", "training_args.bin"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "tokenizer.model").write_bytes(b"x")
    assert set(loaded(tmp_path).tokenizer_files.own) == {"tokenizer.json", "tokenizer_config.json"}


def test_what_transformers_puts_in_place_of_the_file_is_in_the_resaved_copy(tmp_path: Path) -> None:
    """Otherwise the tests above compare nothing."""
    legacy_llama(save_tiny_model(tmp_path, "llama"))
    own = AutoTokenizer.from_pretrained(tmp_path)
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(TEXT).ids != own.encode(TEXT)
