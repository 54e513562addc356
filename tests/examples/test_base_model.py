"""The small base model: a real model in Hugging Face format, the same for the same arguments."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.base_model import DATA, END_OF_TEXT, Architecture, make_base_model, read_texts

make_tiny = partial(make_base_model, hidden_size=32, layers=1, mlp_size=64, vocab_size=300)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_transformers_loads_it(tmp_path: Path, architecture: Architecture) -> None:
    directory = make_tiny(tmp_path / "made", architecture=architecture, context_length=99, steps=0)

    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)

    assert model.config.model_type == architecture
    assert model.config.vocab_size == len(tokenizer) == 300
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 99
    assert tokenizer.eos_token == END_OF_TEXT
    assert tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert "model.safetensors" in contents(directory)


def test_the_embeddings_can_be_untied(tmp_path: Path) -> None:
    make_tiny(tmp_path, tie_embeddings=False, steps=0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight


@pytest.mark.parametrize("text", [" a  b\n\tc ", "Grüße, 世界 🙂", "\x00\x7f", read_texts(DATA / "logbook.txt")[0]])
def test_the_tokenizer_gives_any_text_back(tmp_path: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(make_tiny(tmp_path, steps=0))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_words_of_the_texts_are_one_token_each(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(make_tiny(tmp_path, vocab_size=2048, steps=0))
    assert [tokenizer.decode(token) for token in tokenizer.encode("The baker gave bread")] == [
        "The",
        " baker",
        " gave",
        " bread",
    ]


def test_equal_arguments_give_equal_files_and_another_seed_others(tmp_path: Path) -> None:
    first, again, other = (
        contents(make_tiny(tmp_path / name, seed=seed, steps=2)) for name, seed in [("a", 1), ("b", 1), ("c", 2)]
    )
    assert first == again
    assert [name for name in first if first[name] != other[name]] == ["model.safetensors"]


def test_it_leaves_the_random_numbers_of_the_caller_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    make_tiny(tmp_path, steps=1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_pretraining_lowers_the_loss(tmp_path: Path) -> None:
    losses: list[float] = []
    make_tiny(tmp_path, steps=40, progress=lambda step, loss: losses.append(loss))
    assert len(losses) == 40
    assert losses[-1] < losses[0] - 1


def test_a_directory_with_something_in_it_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        make_tiny(tmp_path, steps=0)
    assert contents(tmp_path) == {"notes": b"mine"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"architecture": "gpt2"}, "must be one of qwen3, llama"),
        ({"hidden_size": 30}, "hidden_size must be"),
        ({"kv_heads": 3}, "a multiple of kv_heads"),
        ({"vocab_size": 256}, "vocab_size must be above 256"),
    ],
)
def test_impossible_arguments_are_refused(tmp_path: Path, arguments: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make_tiny(tmp_path / "made", steps=0, **arguments)
    assert not (tmp_path / "made").exists()


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(step: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_tiny(tmp_path / "made", steps=1, progress=interrupt)
    assert list(tmp_path.iterdir()) == []
