"""How requests end: stop rules, limits, refusals, failures, cancellation; and what is free afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from services.core.abilities import Ability
from services.core.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
)
from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.sampler.engine.kv import Slot
from services.sampler.engine.native import NativeSamplerEngine
from services.sampler.engine.vocabulary import Vocabulary
from services.sampler.request import GenerationResult, SampledTokens, StopRule
from testing.rows import random_tokens
from testing.tiny_models import VOCAB_SIZE
from tests.sampler.fixtures import ask, finish, make_engine, run

Load = Callable[..., BaseModel]
Checkpoint = Callable[..., tuple[Path, AdapterWeights]]
PROMPT = [5, 9, 11]


def assert_all_is_free(engine: NativeSamplerEngine) -> None:
    assert engine.idle
    assert engine.running_sequences == 0
    assert engine.free_sequences == 16
    engine.forget_cached_prefixes()
    inspection = engine.inspection
    assert inspection.free_ranges == (Slot(0, inspection.kv_store.rows),)
    assert not any(inspection.adapter_users.values())


def sample(engine: NativeSamplerEngine, **options: object) -> SampledTokens:
    (result,) = run(engine, ask("one", PROMPT, seed=6, **options))
    return result.sequences[0]


@pytest.fixture
def written(load: Load) -> BaseModel:
    """A base model whose tokenizer is byte-level, with letters and with pieces of characters."""
    base = load()
    letters = [chr(ord("a") + index % 26) * (1 + index // 26) for index in range(VOCAB_SIZE - 6)]
    pieces = ["<pad>", "<s>", "</s>", *letters, "\u00f0\u0141", "\u013b", "\u0124"]
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    assert len(vocabulary) == VOCAB_SIZE
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.ByteLevel()
    return dataclasses.replace(base, tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def test_a_stop_token_is_returned_once_at_the_end(load: Load) -> None:
    engine = make_engine(load())
    free = sample(engine, max_tokens=12)
    stop = free.tokens[5]
    first = free.tokens.index(stop)
    stopped = sample(engine, max_tokens=12, stop=StopRule(frozenset({stop})))
    assert stopped == SampledTokens(free.tokens[: first + 1], free.logprobs[: first + 1], "stop")


def test_stop_wins_over_length_on_the_last_allowed_token(load: Load) -> None:
    engine = make_engine(load())
    free = sample(engine, max_tokens=12)
    count = next(n for n in range(2, 13) if free.tokens[n - 1] not in free.tokens[: n - 1])
    stopped = sample(engine, max_tokens=count, stop=StopRule(frozenset({free.tokens[count - 1]})))
    assert (len(stopped.tokens), stopped.stop_reason) == (count, "stop")
    assert sample(engine, max_tokens=count).stop_reason == "length"


def test_stop_tokens_in_the_prompt_do_not_count(load: Load) -> None:
    engine = make_engine(load())
    free = sample(engine, max_tokens=6)
    rule = StopRule(frozenset(set(PROMPT) - set(free.tokens)))
    assert rule.token_ids
    assert sample(engine, max_tokens=6, stop=rule) == free


def test_a_stop_string_ends_at_the_token_that_completes_it(written: BaseModel) -> None:
    engine, vocabulary = make_engine(written), Vocabulary(written.tokenizer)
    free = sample(engine, max_tokens=30)
    pieces = [vocabulary.bytes_of(token) for token in free.tokens]
    text = b"".join(pieces)
    for start in range(0, len(text) - 5, 3):
        string = text[start : start + 5]
        end = text.index(string) + 5
        count = next(n for n in range(len(pieces) + 1) if len(b"".join(pieces[:n])) >= end)
        stopped = sample(engine, max_tokens=30, stop=StopRule(strings=(string,)))
        assert stopped == SampledTokens(free.tokens[:count], free.logprobs[:count], "stop")


def test_stop_strings_are_not_looked_for_in_the_prompt(written: BaseModel) -> None:
    engine, vocabulary = make_engine(written), Vocabulary(written.tokenizer)
    in_prompt = b"".join(vocabulary.bytes_of(token) for token in PROMPT)
    free = sample(engine, max_tokens=8)
    rule = StopRule(strings=(in_prompt, in_prompt[-1:] + vocabulary.bytes_of(free.tokens[0])))
    assert sample(engine, max_tokens=8, stop=rule) == free


def test_stop_strings_need_a_tokenizer_that_can_be_read(load: Load) -> None:
    engine = make_engine(load())
    assert engine.info.abilities == set(Ability) - {Ability.STOP_STRINGS}
    with pytest.raises(InvalidArgumentError, match=r"stop\.strings"):
        engine.submit(ask("one", PROMPT, stop=StopRule(strings=(b"x",))))
    assert_all_is_free(engine)


def test_with_a_tokenizer_that_can_be_read_every_ability_is_announced(written: BaseModel) -> None:
    assert make_engine(written).info.abilities == set(Ability)


def test_samples_of_a_request_stop_each_on_their_own(load: Load) -> None:
    engine = make_engine(load())
    (free,) = run(engine, ask("free", PROMPT, num_samples=6, max_tokens=15, seed=2))
    stop = free.sequences[3].tokens[4]
    (stopped,) = run(
        engine, ask("stopped", PROMPT, num_samples=6, max_tokens=15, seed=2, stop=StopRule(frozenset({stop})))
    )
    for whole, part in zip(free.sequences, stopped.sequences, strict=True):
        assert part.tokens == whole.tokens[: len(part.tokens)]
        assert stop not in part.tokens[:-1]
        assert part.stop_reason == ("stop" if part.tokens[-1] == stop else "length")
    assert {part.stop_reason for part in stopped.sequences} == {"stop", "length"}
    assert_all_is_free(engine)


def test_the_context_can_be_filled_to_the_last_token(load: Load) -> None:
    base = load()
    engine = make_engine(base, max_cached_tokens=base.max_context_length)
    assert engine.info.max_context_length == base.max_context_length == 128
    prompt = random_tokens(base, [100])[0]
    (result,) = run(engine, ask("one", prompt, max_tokens=28))
    assert len(result.sequences[0].tokens) == 28
    with pytest.raises(InvalidArgumentError, match="max_tokens"):
        engine.submit(ask("more", prompt, max_tokens=29))
    (scored,) = run(engine, ask("score", [5] * 128, num_samples=0, include_prompt_logprobs=True))
    assert scored.prompt_logprobs is not None
    assert len(scored.prompt_logprobs) == 128


def test_a_store_shorter_than_the_context_bounds_it(load: Load) -> None:
    engine = make_engine(load(), max_cached_tokens=50)
    assert engine.info.max_context_length == 50
    with pytest.raises(InvalidArgumentError, match="max_tokens"):
        engine.submit(ask("long", [5] * 40, max_tokens=11))
    run(engine, ask("fits", [5] * 40, max_tokens=10))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt": ()}, "prompt"),
        ({"prompt": (5, VOCAB_SIZE)}, "prompt"),
        ({"prompt": (-1,)}, "prompt"),
        ({"prompt": (5,) * 129}, "prompt"),
        ({"prompt": (5,) * 128}, "max_tokens"),
        ({"num_samples": -1}, "num_samples"),
        ({"num_samples": 1025}, "num_samples"),
        ({"num_samples": 0}, "num_samples"),
        ({"topk_prompt_logprobs": 101}, "topk_prompt_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 126}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": -2}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
    ],
    ids=str,
)
def test_bad_requests_are_refused_by_field_and_change_nothing(
    load: Load, change: dict[str, object], field: str
) -> None:
    engine = make_engine(load())
    engine.submit(ask("good", PROMPT, seed=6))
    options: dict[str, object] = {"prompt": tuple(PROMPT)}
    with pytest.raises(InvalidArgumentError) as caught:
        engine.submit(ask("bad", **(options | change)))  # type: ignore[arg-type]
    assert field in caught.value.violations[0].field
    outcomes = finish(engine)
    assert list(outcomes) == ["good"]
    assert outcomes["good"] == run(make_engine(load()), ask("good", PROMPT, seed=6))[0]


def test_a_name_in_use_is_refused_and_free_again_afterwards(load: Load) -> None:
    engine = make_engine(load())
    engine.submit(ask("one", PROMPT))
    with pytest.raises(AlreadyExistsError):
        engine.submit(ask("one", PROMPT))
    finish(engine)
    run(engine, ask("one", PROMPT))


def test_bad_adapters_fail_alone(load: Load, checkpoint: Checkpoint, tmp_path: Path) -> None:
    base = load()
    engine = make_engine(base)
    good, _ = checkpoint(base, 1)
    broken, _ = checkpoint(base, 2)
    (broken / "adapter_model.safetensors").write_bytes(b"no tensors")
    other, _ = checkpoint(load("llama"), 3)
    for name, location in (("good", good), ("broken", broken), ("other", other), ("absent", tmp_path / "absent")):
        engine.submit(ask(name, PROMPT, adapter=location))
    outcomes = finish(engine)
    assert isinstance(outcomes["good"], GenerationResult)
    assert isinstance(outcomes["broken"], DataLossError)
    assert isinstance(outcomes["absent"], DataLossError)
    assert isinstance(outcomes["other"], InvalidArgumentError)
    assert_all_is_free(engine)


def test_an_exception_in_a_step_fails_its_requests_and_no_others(load: Load) -> None:
    base = load()
    engine = make_engine(base, max_sequences=4)
    for index in range(3):
        engine.submit(ask(f"in-{index}", PROMPT, num_samples=2))

    def explode(*_: object) -> None:
        raise RuntimeError("the device is on fire")

    engine.step()
    hook = base.module.base_model.layers[1].mlp.register_forward_pre_hook(explode)
    with capture_logs() as logged:
        failed = engine.step()
    hook.remove()
    assert [finished.name for finished in failed] == ["in-0", "in-1", "in-2"]
    for finished in failed:
        assert isinstance(finished.outcome, InternalError)
        assert finished.outcome.reason == "STEP_FAILED"
        assert finished.outcome.message == f"operation {finished.name} failed in the sampler; see its log"
    assert [(entry["operation"], str(entry["exc_info"])) for entry in logged] == [
        (finished.name, "the device is on fire") for finished in failed
    ]
    assert engine.idle
    run(engine, ask("after", PROMPT, num_samples=9))


def test_cancel_frees_slots_at_once_and_leaves_the_others(load: Load, checkpoint: Checkpoint) -> None:
    base = load()
    location, _ = checkpoint(base, 1)
    engine = make_engine(base, max_tokens_per_step=20)
    (expected,) = run(engine, ask("kept", PROMPT, seed=3, max_tokens=20))
    engine.submit(ask("kept", PROMPT, seed=3, max_tokens=20))
    engine.submit(ask("generating", [7], num_samples=5, max_tokens=50, adapter=location))
    engine.submit(ask("prefilling", [7] * 100, num_samples=3, adapter=location))
    engine.submit(ask("untouched", [7] * 100))
    for _ in range(3):
        assert engine.step() == []
    assert engine.running_sequences == 8
    assert engine.free_sequences == 16 - 1 - 5 - 3 - 1
    for name in ("generating", "prefilling", "untouched"):
        assert engine.cancel(name)
        assert not engine.cancel(name)
    assert engine.running_sequences == 1
    assert engine.free_sequences == 15
    (kept,) = finish(engine).values()
    assert isinstance(kept, GenerationResult)
    assert kept.sequences[0].tokens == expected.sequences[0].tokens
    assert_all_is_free(engine)


def test_requests_start_in_order_of_arrival_and_none_overtakes_a_long_one(load: Load) -> None:
    engine = make_engine(load(), max_cached_tokens=128, max_sequences=4)
    engine.submit(ask("running", [5] * 8, max_tokens=4))
    engine.submit(ask("long", [5] * 100, max_tokens=28))
    engine.submit(ask("short", [5], max_tokens=2))
    order = []
    while not engine.idle:
        order += [finished.name for finished in engine.step()]
    assert order == ["running", "long", "short"]


def test_a_long_prompt_does_not_hold_up_those_who_generate(load: Load) -> None:
    engine = make_engine(load(), max_tokens_per_step=16)
    engine.submit(ask("generating", PROMPT, max_tokens=5))
    engine.step()
    engine.submit(ask("long", [5] * 120, max_tokens=1))
    ends = {}
    for step in range(1, 100):
        ends |= {finished.name: step for finished in engine.step()}
        if engine.idle:
            break
    assert ends == {"generating": 4, "long": 8}


def test_limits_that_make_no_sense_are_refused(load: Load) -> None:
    base = load()
    for limits in (
        {"max_sequences": 0},
        {"max_sequences": 65},
        {"max_cached_tokens": 0},
        {"max_adapters": 0},
    ):
        with pytest.raises(ValueError, match="must be"):
            make_engine(base, **limits)


def test_memory_of_the_store_is_known_up_front(load: Load) -> None:
    base = load()
    config, store = base.config, make_engine(base, max_cached_tokens=100).inspection.kv_store
    assert store.size_bytes == 100 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 2 * 4


def test_deterministic_mode_is_refused_where_its_operations_are_missing(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OtherTorch:
        """A torch without oneDNN's packed linears."""

    monkeypatch.setattr(torch.ops, "mkldnn", OtherTorch())
    with pytest.raises(FailedPreconditionError) as caught:
        make_engine(load(), deterministic=True)
    assert caught.value.reason == "NOT_DETERMINISTIC"
    run(make_engine(load()), ask("plain", PROMPT))
