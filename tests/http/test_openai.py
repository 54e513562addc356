"""Programs of the official `openai` client, unmodified, against a whole platform; our own client is the oracle."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import tinker_client as tinker
from examples.base_model import make_base_model
from testing.platform import API_KEY, BASE_MODEL, Platform
from testing.waiting import wait_until
from tinker_client import types

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content | trim }}\n{% endfor %}"
    "{% if messages[0].role == 'robot' %}{{ raise_exception('no robots') }}{% endif %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}{% if loud %}!{% endif %}"
)
MESSAGES: Any = [{"role": "user", "content": " A lamp. "}, {"role": "assistant", "content": "Lit."}]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights over a byte-level vocabulary: what is drawn breaks characters in every way."""
    directory = make_base_model(tmp_path_factory.mktemp("openai") / "model", steps=0)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


@pytest.fixture(scope="module")
def platform(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    running = Platform(model_dir, tmp_path_factory.mktemp("openai-platform") / "data")
    running.start()
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_dir)
    return loaded


@pytest.fixture(scope="module")
def client(platform: Platform) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{platform.http_port}/v1", api_key=API_KEY, max_retries=0)


@pytest.fixture(scope="module")
def service(platform: Platform) -> Iterator[tinker.ServiceClient]:
    with tinker.ServiceClient(base_url=platform.url, api_key=API_KEY) as opened:
        yield opened


@pytest.fixture(scope="module")
def saved(service: tinker.ServiceClient) -> str:
    """A checkpoint that is far from the base model."""
    training = service.create_lora_training_client(BASE_MODEL, rank=4, seed=1)
    datum = types.Datum(types.ModelInput.from_ints([5, 6, 7, 8]), {"target_tokens": [6, 7, 8, 9]})
    for _ in range(3):
        training.forward_backward([datum], "cross_entropy")
        training.optim_step(types.AdamParams(learning_rate=0.1))
    return training.save_weights_for_sampler("far").result(60).path


def drawn(
    service: tinker.ServiceClient, prompt: list[int], params: types.SamplingParams, n: int = 1, path: str | None = None
) -> list[types.SampledSequence]:
    sampling = service.create_sampling_client(path) if path else service.create_sampling_client(base_model=BASE_MODEL)
    return sampling.sample(types.ModelInput.from_ints(prompt), n, params).result(60).sequences


def test_a_completion_is_the_text_of_the_tokens_that_our_client_gets(
    client: openai.OpenAI, service: tinker.ServiceClient, tokenizer: PreTrainedTokenizerBase, saved: str
) -> None:
    prompt = tokenizer.encode("The lamp was lit")
    params = types.SamplingParams(max_tokens=24, seed=5, temperature=0.8, top_p=0.9, top_k=200)
    for model, path in ((BASE_MODEL, None), (saved, saved)):
        expected = [
            tokenizer.decode(s.tokens, skip_special_tokens=True) for s in drawn(service, prompt, params, 3, path)
        ]
        for asked in ("The lamp was lit", prompt):
            answer = client.completions.create(
                model=model,
                prompt=asked,
                max_tokens=24,
                seed=5,
                temperature=0.8,
                top_p=0.9,
                n=3,
                extra_body={"top_k": 200},
            )
            assert [choice.text for choice in answer.choices] == expected
            assert [choice.index for choice in answer.choices] == [0, 1, 2]
            assert answer.usage is not None
            assert answer.usage.prompt_tokens == len(prompt)
    assert answer.object == "text_completion"
    assert answer.model == saved


def test_several_prompts_are_answered_in_order(
    client: openai.OpenAI, service: tinker.ServiceClient, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = ["The lamp", "A ship came", "Rain"]
    answer = client.completions.create(model=BASE_MODEL, prompt=prompts, max_tokens=8, seed=1, n=2)
    expected = [
        tokenizer.decode(sequence.tokens, skip_special_tokens=True)
        for prompt in prompts
        for sequence in drawn(service, tokenizer.encode(prompt), types.SamplingParams(max_tokens=8, seed=1), 2)
    ]
    assert [choice.text for choice in answer.choices] == expected


def test_a_conversation_goes_through_the_chat_template(
    client: openai.OpenAI, service: tinker.ServiceClient, tokenizer: PreTrainedTokenizerBase
) -> None:
    for options in ({}, {"loud": True}):
        text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True, **options)
        prompt = tokenizer.encode(text, add_special_tokens=False)
        (expected,) = drawn(service, prompt, types.SamplingParams(max_tokens=12, seed=2))
        answer = client.chat.completions.create(
            model=BASE_MODEL, messages=MESSAGES, max_tokens=12, seed=2, extra_body={"chat_template_kwargs": options}
        )
        assert answer.choices[0].message.content == tokenizer.decode(expected.tokens, skip_special_tokens=True)
        assert answer.choices[0].message.role == "assistant"
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), len(expected.tokens))


@pytest.mark.parametrize("seed", range(6))
def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI, seed: int) -> None:
    asked: Any = {"model": BASE_MODEL, "prompt": ["Once", "The sea"], "max_tokens": 60, "seed": seed, "n": 2}
    whole = client.completions.create(**asked)
    texts, ends = dict.fromkeys(range(4), ""), {}
    for event in client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usage = event.usage
        for choice in event.choices:
            texts[choice.index] += choice.text
            if choice.finish_reason:
                assert choice.index not in ends
                ends[choice.index] = choice.finish_reason
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usage == whole.usage


def test_a_chat_stream_is_the_answer_in_pieces(client: openai.OpenAI) -> None:
    asked: Any = {"model": BASE_MODEL, "messages": MESSAGES, "max_completion_tokens": 40, "seed": 3}
    asked |= {"logprobs": True}
    whole = client.chat.completions.create(**asked).choices[0]
    text, logprobs = "", []
    for event in client.chat.completions.create(**asked, stream=True):
        (choice,) = event.choices
        text += choice.delta.content or ""
        logprobs += choice.logprobs.content if choice.logprobs and choice.logprobs.content else []
    assert text == whole.message.content
    assert whole.logprobs is not None
    assert [(item.token, item.bytes) for item in logprobs] == [(i.token, i.bytes) for i in whole.logprobs.content or []]
    assert [i.logprob for i in logprobs] == pytest.approx([i.logprob for i in whole.logprobs.content or []], abs=1e-5)


@pytest.mark.parametrize("stream", [False, True])
def test_token_ids_come_with_the_text_if_they_are_asked_for(
    client: openai.OpenAI, tokenizer: PreTrainedTokenizerBase, stream: bool
) -> None:
    prompt = tokenizer.encode("The lamp was lit")
    body: dict[str, Any] = {"return_token_ids": True}
    asked: Any = {"model": BASE_MODEL, "max_tokens": 12, "seed": 4, "n": 2, "stream": stream, "extra_body": body}
    completion: Any = client.completions.create(prompt=prompt, **asked)
    chat: Any = client.chat.completions.create(messages=MESSAGES, **asked)
    for answer in (completion, chat):
        events = list(answer) if stream else [answer]
        choices = [choice for event in events for choice in event.choices]
        for index in range(2):
            own = [choice for choice in choices if choice.index == index]
            tokens = [token for choice in own for token in getattr(choice, "token_ids", None) or []]
            assert 1 <= len(tokens) <= 12
            text = "".join(
                (choice.text if answer is completion else (choice.delta if stream else choice.message).content) or ""
                for choice in own
            )
            assert text == tokenizer.decode(tokens, skip_special_tokens=True)
            if answer is completion:
                assert [choice.prompt_token_ids for choice in own if hasattr(choice, "prompt_token_ids")] == [prompt]
        if answer is chat:
            (given,) = [event.prompt_token_ids for event in events if hasattr(event, "prompt_token_ids")]
            assert tokenizer.decode(given).endswith("<assistant>")


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_text_and_is_no_part_of_it(client: openai.OpenAI, stream: bool) -> None:
    asked: Any = {"model": BASE_MODEL, "prompt": "Once", "max_tokens": 60, "seed": 4}
    text = client.completions.create(**asked).choices[0].text
    stop = next(
        text[at : at + 3] for at in range(10, len(text)) if "\N{REPLACEMENT CHARACTER}" not in text[at : at + 3]
    )
    asked["stop"] = [stop, "never in there"]
    if stream:
        events = [event.choices[0] for event in client.completions.create(**asked, stream=True)]
        found, reason = "".join(event.text for event in events), events[-1].finish_reason
    else:
        (choice,) = client.completions.create(**asked).choices
        found, reason = choice.text, choice.finish_reason
    assert found == text[: text.index(stop)]
    assert reason == "stop"


def test_log_probabilities_of_prompt_and_answer_are_the_models(
    client: openai.OpenAI, service: tinker.ServiceClient, tokenizer: PreTrainedTokenizerBase
) -> None:
    answer = client.completions.create(
        model=BASE_MODEL, prompt="The lamp was", max_tokens=6, seed=1, temperature=0.5, logprobs=3, echo=True
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    prompt = tokenizer.encode("The lamp was")
    (sequence,) = drawn(service, prompt, types.SamplingParams(max_tokens=6, seed=1, temperature=0.5))
    everything = [*prompt, *sequence.tokens]
    sampling = service.create_sampling_client(base_model=BASE_MODEL)
    scores = sampling.compute_logprobs(types.ModelInput.from_ints(everything)).result(60)
    assert logprobs.token_logprobs is not None
    assert logprobs.token_logprobs[0] is None
    assert logprobs.token_logprobs[1:] == pytest.approx(scores[1:], abs=1e-5)
    assert logprobs.tokens == [tokenizer.decode([token]) for token in everything]
    assert logprobs.top_logprobs is not None
    for row, score in zip(logprobs.top_logprobs[1:], scores[1:], strict=True):
        assert len(row) <= 3
        assert max(row.values()) >= score - 1e-5
    scored = client.completions.create(model=BASE_MODEL, prompt=everything, max_tokens=0, logprobs=0, echo=True)
    assert scored.choices[0].logprobs is not None
    assert scored.choices[0].logprobs.token_logprobs[1:] == pytest.approx(scores[1:], abs=1e-5)  # type: ignore[index]


def test_models_are_base_models_and_checkpoints(client: openai.OpenAI, saved: str) -> None:
    names = [model.id for model in client.models.list()]
    assert names[0] == BASE_MODEL
    assert saved in names
    assert client.models.retrieve(saved).id == saved
    assert client.models.retrieve(BASE_MODEL).owned_by == "platform"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("tinker://nobody:train:0/weights/x")


def test_another_tenants_checkpoint_is_a_model_once_it_is_published(
    client: openai.OpenAI, platform: Platform, service: tinker.ServiceClient, saved: str
) -> None:
    other = client.with_options(api_key=_new_key(platform, "zoe"))
    asked: Any = {"model": saved, "prompt": "Once", "max_tokens": 4, "seed": 1}
    with pytest.raises(openai.NotFoundError) as refused:
        other.completions.create(**asked)
    assert refused.value.code == "model_not_found"
    rest = service.create_rest_client()
    rest.publish_checkpoint_from_tinker_path(saved).result(60)
    assert other.completions.create(**asked).choices == client.completions.create(**asked).choices
    rest.unpublish_checkpoint_from_tinker_path(saved).result(60)
    with pytest.raises(openai.NotFoundError):
        other.completions.create(**asked)


def test_a_path_that_is_saved_again_is_the_new_version(client: openai.OpenAI, service: tinker.ServiceClient) -> None:
    training = service.create_lora_training_client(BASE_MODEL, rank=2, seed=1)
    datum = types.Datum(types.ModelInput.from_ints([5, 6, 7, 8]), {"target_tokens": [6, 7, 8, 9]})

    def answer() -> str:
        path = training.save_state("now", overwrite=True).result(60).path
        return client.completions.create(model=path, prompt="Once", max_tokens=20, seed=1).choices[0].text

    before = answer()
    training.forward_backward([datum], "cross_entropy")
    training.optim_step(types.AdamParams(learning_rate=0.3))
    assert answer() != before


@pytest.mark.parametrize(
    ("changed", "param", "sentence"),
    [
        ({"temperature": -1}, "temperature", "must be greater than or equal to 0 (got -1)"),
        ({"top_p": 0.0}, "top_p", "must be above 0 and at most 1 (got 0)"),
        ({"n": 0}, "n", "must be greater than or equal to 1 (got 0)"),
        ({"max_tokens": 100_000}, "max_tokens", "fit the context"),
        ({"max_tokens": 0}, "max_tokens", "must be at least 1, or 0 with echo=true (got 0)"),
        ({"presence_penalty": 0.5}, "presence_penalty", "must be 0 (got 0.5)"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias", "at most 0"),
        ({"best_of": 4}, "best_of", "must equal n (got 4)"),
        ({"suffix": "end"}, "suffix", "''"),
        ({"extra_body": {"min_p": 0.1}}, "min_p", "min_p: not supported"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"prompt": []}, "prompt", "empty"),
        ({"prompt": [100_000]}, "prompt", "must be token ids from 0 to "),
        ({"prompt": "a" * (8 << 20)}, "prompt", "characters, 64 for each token of the context (got 8388608)"),
        ({"prompt": "The lamp. " * 2000}, "prompt", "must be shorter than the context of "),
        ({"prompt": [5] * 100_000}, "prompt", "must be shorter than the context of "),
        ({"stop": [""]}, "stop.strings[0]", "must be from 1 to 256 bytes long (got 0)"),
        ({"logprobs": 2, "stream": True}, "logprobs", "must be 0 with stream=true"),
        ({"echo": True, "stream": True}, "echo", "must be false with stream=true (got true)"),
    ],
)
def test_what_cannot_be_done_is_refused_by_the_parameter(
    client: openai.OpenAI, changed: dict[str, Any], param: str, sentence: str
) -> None:
    asked: dict[str, Any] = {"model": BASE_MODEL, "prompt": "Once", "max_tokens": 4} | changed
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(**asked)
    assert sentence in refused.value.message
    assert refused.value.param is not None
    assert refused.value.param.startswith(param)
    assert refused.value.type == "invalid_request_error"


def test_chat_refusals_name_the_parameter(client: openai.OpenAI) -> None:
    def refusal(**changed: Any) -> openai.APIStatusError:
        asked: dict[str, Any] = {"model": BASE_MODEL, "messages": MESSAGES, "max_tokens": 4} | changed
        with pytest.raises(openai.APIStatusError) as refused:
            client.chat.completions.create(**asked)
        return refused.value

    assert refusal(messages=[]).param == "messages"
    assert "no robots" in refusal(messages=[{"role": "robot", "content": "x"}]).message
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    assert refusal(messages=image).status_code == 400
    tool = {"type": "function", "function": {"name": "look"}}
    assert refusal(tools=[tool]).param == "tools"
    assert refusal(response_format={"type": "json_object"}).status_code == 400
    assert refusal(top_logprobs=2).param == "top_logprobs"
    assert refusal(max_completion_tokens=5).param == "max_tokens"
    unknown = refusal(model="nobody/lm")
    assert (unknown.status_code, unknown.code, unknown.param) == (404, "model_not_found", "model")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="tml-nobody").models.list()


@pytest.mark.parametrize("endpoint", ["completions", "chat/completions"])
@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"", "application/json", 400),
        (b'{"model": "tiny/lm", "prompt": "x"', "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"model": "tiny/lm", "prompt": "x", "messages": 5, "temperature": NaN}', "application/json", 400),
        (b'{"model": "\xff"}', "application/json", 400),
        (b"model=tiny", "application/x-www-form-urlencoded", 415),
        (b"[" * 100_000, "application/json", 400),
        (b" " * ((16 << 20) + 1), "application/json", 413),
    ],
)
def test_malformed_bodies_are_refused_in_openais_shape(
    client: openai.OpenAI, endpoint: str, content: bytes, kind: str, status: int
) -> None:
    headers = {"authorization": f"Bearer {API_KEY}", "content-type": kind}
    answer = httpx.post(f"{client.base_url}{endpoint}", content=content, headers=headers)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]


def test_a_caller_that_goes_away_cancels(
    client: openai.OpenAI, service: tinker.ServiceClient, platform: Platform
) -> None:
    import grpc

    from tinker_proto.v1 import operation_pb2, operation_pb2_grpc

    stream = client.completions.create(model=BASE_MODEL, prompt="Once", n=64, max_tokens=500, seed=1, stream=True)
    name = next(iter(stream)).id.removeprefix("cmpl-")
    stream.close()
    with grpc.insecure_channel(platform.address) as channel:
        operations = operation_pb2_grpc.OperationServiceStub(channel)

        def is_cancelled() -> bool:
            request = operation_pb2.GetOperationRequest(name=name)
            state = operations.GetOperation(request, metadata=(("x-api-key", API_KEY),)).state
            assert state != operation_pb2.OPERATION_STATE_SUCCEEDED
            return bool(state == operation_pb2.OPERATION_STATE_CANCELLED)

        wait_until(is_cancelled, what="the cancellation")


def test_many_at_once(client: openai.OpenAI) -> None:
    def answer(seed: int) -> str:
        return client.completions.create(model=BASE_MODEL, prompt="Once", max_tokens=8, seed=seed).choices[0].text

    with ThreadPoolExecutor(32) as threads:
        together = list(threads.map(answer, range(64)))
    assert together[:4] == [answer(seed) for seed in range(4)]


def _new_key(platform: Platform, tenant: str) -> str:
    import subprocess
    import sys

    command = [sys.executable, "-m", "services.cli.main", "keys", "create", "--tenant", tenant]
    done = subprocess.run(
        [*command, "--data-dir", str(platform.data_dir)], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()
