"""What a person gets wrong, seen from the client: a typed error with a sentence, and the run goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import tinker_client as tinker
from testing.platform import BASE_MODEL, Platform
from tests.e2e.test_main_job import ADAM, DATA
from tinker_client import types

IMAGE = types.ModelInput(chunks=[types.ImageChunk(data=b"x", format="png")])


def bad_datum(**inputs: Any) -> types.Datum:
    return types.Datum(types.ModelInput.from_ints(tokens=[5, 6]), {"target_tokens": [6, 7], **inputs})


MISTAKES: dict[str, tuple[Callable[[tinker.TrainingClient], tinker.APIFuture[Any]], str]] = {
    "unknown loss": (lambda run: run.forward_backward(DATA, "cross_entropi"), "loss_fn"),
    "token outside the vocabulary": (
        lambda run: run.forward_backward([bad_datum(target_tokens=[6, 10_000])], "cross_entropy"),
        'data[0].loss_fn_inputs["target_tokens"]',
    ),
    "wrong length": (
        lambda run: run.forward_backward([bad_datum(weights=[1.0])], "cross_entropy"),
        'data[0].loss_fn_inputs["weights"]',
    ),
    "image": (
        lambda run: run.forward_backward([types.Datum(IMAGE, {"target_tokens": [1]})], "cross_entropy"),
        "data[0].model_input.chunks[0].image",
    ),
    "checkpoint name": (lambda run: run.save_state("../escape"), "name"),
    "learning rate": (lambda run: run.optim_step(types.AdamParams(learning_rate=-1.0)), "adam_params.learning_rate"),
}


@pytest.mark.parametrize(("mistake", "field"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_names_its_field_and_the_next_operation_works(
    training: tinker.TrainingClient, mistake: Callable[[tinker.TrainingClient], tinker.APIFuture[Any]], field: str
) -> None:
    future = mistake(training)
    following = training.forward_backward(DATA, "cross_entropy")
    with pytest.raises(tinker.BadRequestError) as refused:
        future.result(30)
    assert refused.value.field_violations[0].field == field
    assert following.result(30).metrics["loss:sum"] > 0
    assert training.optim_step(ADAM).result(30).metrics["grad_norm:mean"] > 0


def test_a_name_in_use_fails_by_name_and_overwriting_replaces(training: tinker.TrainingClient) -> None:
    path = training.save_state("once").result(30).path
    with pytest.raises(tinker.RequestFailedError, match="already"):
        training.save_state("once").result(30)
    assert training.save_state("once", overwrite=True).result(30).path == path
    training.load_state(path).result(30)


def test_a_missing_checkpoint_fails_by_name(training: tinker.TrainingClient) -> None:
    path = f"tinker://{training.model_id}/weights/never"
    with pytest.raises(tinker.RequestFailedError, match="never"):
        training.load_state(path).result(30)
    training.forward(DATA, "cross_entropy").result(30)


def test_a_sampler_checkpoint_cannot_be_trained_on(
    service: tinker.ServiceClient, training: tinker.TrainingClient
) -> None:
    path = training.save_weights_for_sampler("fixed").result(30).path
    with pytest.raises(tinker.BadRequestError, match="sampler checkpoint"):
        service.create_training_client_from_state(path)


def test_an_unknown_base_model_is_answered_with_those_that_are_served(service: tinker.ServiceClient) -> None:
    with pytest.raises(tinker.BadRequestError, match=BASE_MODEL):
        service.create_lora_training_client("gpt-17")


def test_a_wrong_key_says_how_to_get_one(platform: Platform) -> None:
    with (
        tinker.ServiceClient(base_url=platform.url, api_key="tml-wrong") as stranger,
        pytest.raises(tinker.AuthenticationError, match="keys create"),
    ):
        stranger.get_server_capabilities()


def test_the_tokenizer_comes_through_the_api(training: tinker.TrainingClient) -> None:
    tokenizer = training.get_tokenizer()
    assert tokenizer.decode(tokenizer.encode("w5 w6")) == "w5 w6"


def test_checkpoints_are_listed_looked_at_and_deleted(
    service: tinker.ServiceClient, training: tinker.TrainingClient
) -> None:
    training.save_state("a").result(30)
    sampler_path = training.save_weights_for_sampler("b").result(30).path
    rest = service.create_rest_client()
    listed = rest.list_checkpoints(training.model_id).result(30).checkpoints
    assert [(c.checkpoint_id, c.checkpoint_type) for c in listed] == [
        ("sampler_weights/b", "sampler"),
        ("weights/a", "training"),
    ]
    assert all(c.size_bytes and c.size_bytes > 0 and not c.public for c in listed)
    sampling = service.create_sampling_client(model_path=sampler_path)
    rest.delete_checkpoint_from_tinker_path(sampler_path).result(30)
    assert len(rest.list_checkpoints(training.model_id).result(30).checkpoints) == 1
    assert sampling.compute_logprobs(types.ModelInput.from_ints(tokens=[5, 6])).result(30), "what is open keeps it"
    with pytest.raises(tinker.NotFoundError):
        service.create_sampling_client(model_path=sampler_path)
