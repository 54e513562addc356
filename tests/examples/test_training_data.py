"""What the example programs send: rows that line up, and the reward of the reinforcement learning example."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from examples import rl, sft
from examples.base_model import DATA, make_base_model, read_texts
from tinker_client import types


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat sat by me.", 1.0),
        ("The cat sat by me. And so did the dog!", 1.0),
        ("The cat sat by.", 0.8),
        ("The cat sat by me. Yes.", (1.0 + 0.2) / 2),
        ("One two three four five six seven eight?", 0.4),
        ("One two three four five six seven eight nine ten eleven.", 0.0),
        ("The cat sat by me. And then it all at once began to", 1.0),
        ("The cat sat by me", 0.0),
        ("", 0.0),
    ],
)
def test_the_reward_is_highest_for_finished_sentences_of_five_words(text: str, expected: float) -> None:
    assert rl.reward(text) == pytest.approx(expected)


def test_sampled_tokens_are_targets_and_the_prompt_has_no_weight() -> None:
    sequence = types.SampledSequence(tokens=[7, 8, 0], logprobs=[-0.7, -0.8, -0.1], stop_reason="stop")
    datum = rl.make_datum([4, 5, 6], sequence, advantage=0.5)
    inputs = {name: tensor.tolist() for name, tensor in datum.loss_fn_inputs.items()}
    assert datum.model_input.to_ints() == [4, 5, 6, 7, 8]
    assert inputs["target_tokens"] == [5, 6, 7, 8, 0]
    assert inputs["logprobs"] == pytest.approx([0, 0, -0.7, -0.8, -0.1])
    assert inputs["advantages"] == [0, 0, 0.5, 0.5, 0.5]


def test_every_day_of_the_logbook_is_learned_up_to_its_end(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(make_base_model(tmp_path, vocab_size=300, steps=0))
    datum = sft.make_datum("Day 1.\n", tokenizer)
    day = tokenizer.encode("Day 1.")
    assert datum.model_input.to_ints() == day
    assert datum.loss_fn_inputs["target_tokens"].tolist() == [*day[1:], tokenizer.eos_token_id]
    assert datum.loss_fn_inputs["weights"].tolist() == [1.0] * len(day)


def test_the_logbook_keeps_its_rigid_form() -> None:
    days = read_texts(DATA / "logbook.txt")
    assert len(days) == 60
    for number, day in enumerate(days, start=1):
        assert [part.split()[0] for part in day.split(". ")] == [
            *("Day", "Wind", "Sea", "Barometer", "Lamp", "Ships:", "Remarks:", "All"),
        ]
        assert day.startswith(f"Day {number}. Wind ")
        assert day.endswith(" All well.")
