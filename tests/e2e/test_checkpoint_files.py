"""Adapters out of the platform and into it, and full models: what plain PEFT and transformers compute with them."""

from __future__ import annotations

import hashlib
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import tinker_client as tinker
from services.model.adapter_config import AdapterConfig
from testing.plain_peft import PlainPeft, peft_warnings_ignored
from testing.platform import API_KEY, BASE_MODEL, Platform
from testing.tiny_models import save_tiny_model
from tests.core.s3_server import BUCKET, serving_s3
from tinker_client import types

TOKENS = [5, 17, 3, 60, 8, 44, 21, 9]
ADAM = types.AdamParams(learning_rate=3e-2)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


ONE = "model.layers.1.self_attn.v_proj"
PATTERNS = {
    "alpha": 5.66,
    "target_modules": (ONE, "up_proj"),
    "rank_pattern": {ONE: 3},
    "alpha_pattern": {ONE: 0.9},
}


def datum(tokens: list[int] = TOKENS) -> types.Datum:
    return types.Datum(types.ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:]})


def train(client: tinker.TrainingClient, steps: int = 3) -> None:
    for _ in range(steps):
        client.forward_backward([datum()], "cross_entropy")
        client.optim_step(ADAM).result()


def platform_logprobs(client: tinker.TrainingClient) -> np.ndarray:
    return client.forward([datum()], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].to_numpy()


def plain_logprobs(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([TOKENS[:-1]]), use_cache=False).logits[0]
    return logits.log_softmax(-1).gather(1, torch.tensor(TOKENS[1:])[:, None])[:, 0].numpy()


def peft_logprobs(model_dir: Path, adapter: Path) -> np.ndarray:
    with peft_warnings_ignored():
        plain = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        return plain_logprobs(PeftModel.from_pretrained(plain, str(adapter)))


def save_peft_adapter(model_dir: Path, directory: Path, **options: object) -> Path:
    """An adapter with random weights as PEFT itself writes it, for this base model under the platform's name of it."""
    config = AdapterConfig(**{"rank": 6, "alpha": 11, "seed": 3, **options})  # type: ignore[arg-type]
    model = PlainPeft(model_dir, config)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.model.peft_config["default"].base_model_name_or_path = BASE_MODEL
    with peft_warnings_ignored():
        model.model.save_pretrained(str(directory), save_embedding_layers=True)
    return directory


@pytest.fixture
def trained(training: tinker.TrainingClient) -> tinker.TrainingClient:
    train(training)
    return training


@pytest.mark.parametrize("kind", ["weights", "sampler_weights"])
def test_a_download_is_a_peft_adapter(
    service: tinker.ServiceClient, trained: tinker.TrainingClient, model_dir: Path, tmp_path: Path, kind: str
) -> None:
    if kind == "weights":
        path = trained.save_state("out").result().path
    else:
        path = trained.save_weights_for_sampler("out").result().path
    seen: list[tuple[int, int]] = []
    directory = service.create_rest_client().download_checkpoint(
        path, tmp_path / "adapter", lambda done, total: seen.append((done, total))
    )
    assert {item.name for item in directory.result().iterdir()} == {CONFIG, WEIGHTS}
    assert seen[-1][0] == seen[-1][1] == sum(item.stat().st_size for item in (tmp_path / "adapter").iterdir())
    np.testing.assert_allclose(peft_logprobs(model_dir, tmp_path / "adapter"), platform_logprobs(trained), atol=1e-5)


def test_a_download_goes_on_where_it_stopped_and_never_over_anything_else(
    service: tinker.ServiceClient, trained: tinker.TrainingClient, tmp_path: Path
) -> None:
    rest, path = service.create_rest_client(), trained.save_state("resumed").result().path
    whole = rest.download_checkpoint(path, tmp_path / "whole").result()
    content = (whole / WEIGHTS).read_bytes()
    partial = tmp_path / "partial"
    partial.mkdir()
    stopped = partial / f".{WEIGHTS}.{hashlib.sha256(content).hexdigest()[:16]}.part"
    stopped.write_bytes(content[:1000])
    fetched: list[int] = []
    rest.download_checkpoint(path, partial, lambda done, total: fetched.append(done)).result()
    assert fetched[0] < len(content)
    assert (partial / WEIGHTS).read_bytes() == content
    assert {item.name for item in partial.iterdir()} == {CONFIG, WEIGHTS}
    rest.download_checkpoint(path, partial).result()

    stopped.write_bytes(b"x" * 1000)  # a damaged beginning is found at the end, and not kept
    (partial / WEIGHTS).unlink()
    with pytest.raises(tinker.TinkerError, match=WEIGHTS):
        rest.download_checkpoint(path, partial).result()
    rest.download_checkpoint(path, partial).result()
    (partial / CONFIG).write_text("{}")
    with pytest.raises(FileExistsError, match=CONFIG):
        rest.download_checkpoint(path, partial).result()
    assert (partial / CONFIG).read_text() == "{}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True, "train_unembed": False}, PATTERNS],
    ids=["all", "rslora", "patterns"],
)
def test_what_peft_has_written_computes_the_same_here(
    service: tinker.ServiceClient, model_dir: Path, tmp_path: Path, dtype: torch.dtype, options: dict[str, object]
) -> None:
    directory = save_peft_adapter(model_dir, tmp_path / "adapter", **options)
    tensors = load_file(directory / WEIGHTS)
    tensors |= {name: tensor.to(dtype) for name, tensor in tensors.items() if ".lora_" in name}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    imported = service.import_checkpoint(directory, BASE_MODEL, "theirs", {"from": "peft"}, ttl_seconds=7200)
    assert imported.training_run.lora_rank == 6
    expected = peft_logprobs(model_dir, directory)
    client = service.create_training_client_from_state(imported.path)
    np.testing.assert_allclose(platform_logprobs(client), expected, atol=1e-5)
    sampling = service.create_sampling_client(imported.path)
    scored = sampling.compute_logprobs(types.ModelInput.from_ints(TOKENS)).result()
    np.testing.assert_allclose(np.array(scored[1:], dtype=np.float64), expected, atol=1e-5)
    rest = service.create_rest_client()
    found = rest.get_checkpoint(imported.path).result()
    assert found.lora_config.alpha == options.get("alpha", 11)
    assert found.lora_config.rank_pattern == options.get("rank_pattern", {})
    assert found.lora_config.alpha_pattern == options.get("alpha_pattern", {})
    assert (found.user_metadata, found.checkpoint_type) == ({"from": "peft"}, "training")
    assert found.expires_at is not None
    assert rest.get_training_run(imported.training_run.training_run_id).result().user_metadata == {"from": "peft"}
    back = rest.download_checkpoint(imported.path, tmp_path / "back").result()
    np.testing.assert_allclose(peft_logprobs(model_dir, back), expected, atol=1e-5)


Change = Callable[[dict[str, object], dict[str, torch.Tensor]], None]
A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def _config(**changes: object) -> Change:
    return lambda config, tensors: config.update(changes)


def _nan(config: dict[str, object], tensors: dict[str, torch.Tensor]) -> None:
    tensors[A][0, 0] = float("nan")


def _infinite(config: dict[str, object], tensors: dict[str, torch.Tensor]) -> None:
    tensors[A][1, 1] = float("inf")


def _wrong_shape(config: dict[str, object], tensors: dict[str, torch.Tensor]) -> None:
    tensors[A] = tensors[A][:, :-1].contiguous()


def _missing(config: dict[str, object], tensors: dict[str, torch.Tensor]) -> None:
    del tensors[A]


def _integers(config: dict[str, object], tensors: dict[str, torch.Tensor]) -> None:
    tensors[A] = tensors[A].to(torch.int8)


def _changed_embedding(config: dict[str, object], tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.embed_tokens.weight"] = torch.zeros(89, 40)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_config(base_model_name_or_path="other/lm"), r"base_model_name_or_path must be 'tiny/lm' \(got 'other/lm'\)"),
        (_config(r=4), "must have shape"),
        (_config(r=100_000), r"r of .* must be from 1 to .* \(got 100000\)"),
        (_config(r="6"), r"r of .* must be from 1 to .* \(got '6'\)"),
        (
            _config(rank_pattern={"q_proj": 100_000}),
            r"rank_pattern\['q_proj'\] of .* must be from 1 to .* \(got 100000\)",
        ),
        (_config(lora_alpha="0.5"), r"lora_alpha must be a number from .* \(got '0\.5'\)"),
        (_config(target_modules=["q_proj", "router"]), "target_modules must be such that .*router"),
        (_config(init_lora_weights="pissa"), r"init_lora_weights must be .* \(got 'pissa'\)"),
        (_config(use_dora=True), r"use_dora must be False, .*supported \(got True\)"),
        (_nan, f"{A} must be finite .*NaN"),
        (_infinite, rf"{A} must be finite \(got NaN or infinite values\)"),
        (_wrong_shape, f"{A} must have shape"),
        (_missing, f"lacks tensor {A}"),
        (_integers, rf"{A} must be float32 or bfloat16 or float16 \(got int8\)"),
        (_changed_embedding, "embed_tokens.weight must be the base model's"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_leaves_nothing(
    service: tinker.ServiceClient, model_dir: Path, tmp_path: Path, change: Change, complaint: str
) -> None:
    directory = save_peft_adapter(model_dir, tmp_path / "adapter", train_mlp=False, train_unembed=False)
    config, tensors = json.loads((directory / CONFIG).read_bytes()), load_file(directory / WEIGHTS)
    change(config, tensors)
    (directory / CONFIG).write_text(json.dumps(config))
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    rest = service.create_rest_client()
    runs = rest.list_training_runs(1).result().total_size
    with pytest.raises((tinker.RequestFailedError, tinker.BadRequestError), match=complaint) as caught:
        service.import_checkpoint(directory, BASE_MODEL, "bad")
    assert "uploads/" not in str(caught.value)
    assert rest.list_training_runs(1).result().total_size == runs


def test_a_name_of_the_base_model_can_be_overruled(
    service: tinker.ServiceClient, model_dir: Path, tmp_path: Path
) -> None:
    directory = save_peft_adapter(model_dir, tmp_path / "adapter")
    config = json.loads((directory / CONFIG).read_bytes())
    (directory / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": "/elsewhere/lm"}))
    imported = service.import_checkpoint(
        directory / WEIGHTS, BASE_MODEL, "renamed", config=directory / CONFIG, rename_base_model=True
    )
    assert imported.path.endswith("/weights/renamed")


@pytest.mark.parametrize("odd", ["link", "pipe", "link to the weights"])
def test_links_and_odd_files_are_never_sent(
    service: tinker.ServiceClient, model_dir: Path, tmp_path: Path, odd: str
) -> None:
    directory = save_peft_adapter(model_dir, tmp_path / "adapter")
    if odd == "pipe":
        os.mkfifo(directory / "notes")
    elif odd == "link":
        (directory / "notes").symlink_to("/etc/passwd")
    else:
        (directory / WEIGHTS).rename(tmp_path / "weights")
        (directory / WEIGHTS).symlink_to(tmp_path / "weights")
    with pytest.raises(ValueError, match="plain file"):
        service.import_checkpoint(directory, BASE_MODEL, "odd")


@pytest.mark.parametrize("train_unembed", [True, False], ids=["unembedding", "no unembedding"])
def test_a_merged_model_is_a_plain_model(service: tinker.ServiceClient, tmp_path: Path, train_unembed: bool) -> None:
    client = service.create_lora_training_client(BASE_MODEL, rank=4, seed=7, train_unembed=train_unembed)
    train(client)
    sampling = client.save_weights_and_get_sampling_client("merge-me")
    seen: list[tuple[int, int]] = []
    merging = sampling.merge_weights(tmp_path / "merged", lambda done, total: seen.append((done, total)))
    merged = merging.result()
    assert seen[-1][0] == seen[-1][1] > 0
    plain = AutoModelForCausalLM.from_pretrained(merged, dtype="auto")
    assert plain.dtype == torch.float32
    np.testing.assert_allclose(plain_logprobs(plain), platform_logprobs(client), atol=1e-4)
    assert sampling.merge_weights(merged).result() == merged, "a second merge has the same bytes"


def test_a_base_model_alone_is_not_merged(service: tinker.ServiceClient, tmp_path: Path) -> None:
    sampling = service.create_sampling_client(base_model=BASE_MODEL)
    with pytest.raises(tinker.BadRequestError, match="must be a sampling session opened with model_path"):
        sampling.merge_weights(tmp_path).result()


def test_a_full_disk_fails_the_save_alone(platform: Platform, service: tinker.ServiceClient) -> None:
    client = service.create_lora_training_client(BASE_MODEL, rank=32, seed=7)
    train(client)
    before = client.save_state("before").result().path
    expected = platform_logprobs(client)
    trainer = psutil.Process(platform.child("trainer").pid)
    limits = trainer.rlimit(resource.RLIMIT_FSIZE)
    trainer.rlimit(resource.RLIMIT_FSIZE, (150_000, limits[1]))
    try:
        with pytest.raises(tinker.RequestFailedError, match="storage is full") as caught:
            client.save_state("full").result()
    finally:
        trainer.rlimit(resource.RLIMIT_FSIZE, limits)
    assert (caught.value.code, caught.value.reason) == ("RESOURCE_EXHAUSTED", "STORAGE_FULL")
    names = [
        item.checkpoint_id
        for item in service.create_rest_client().list_checkpoints(client.model_id).result().checkpoints
    ]
    assert names == ["weights/before"]
    client.load_state(before).result()
    np.testing.assert_array_equal(platform_logprobs(client), expected)
    client.save_state("full").result()


@pytest.fixture(scope="module")
def on_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    root = tmp_path_factory.mktemp("platform-on-s3")
    model_dir = save_tiny_model(root / "model", "qwen3")
    with serving_s3() as server:
        variables = {**server.variables, "TINKER_STORAGE_URL": f"s3://{BUCKET}/platform"}
        running = Platform(model_dir, root / "data", variables)
        running.start()
        yield running
        assert running.stop() == 0


def test_everything_works_over_s3_and_an_imported_run_survives_its_trainer(on_s3: Platform, tmp_path: Path) -> None:
    directory = save_peft_adapter(on_s3.model_dir, tmp_path / "adapter")
    with tinker.ServiceClient(base_url=on_s3.url, api_key=API_KEY) as service:
        imported = service.import_checkpoint(directory, BASE_MODEL, "theirs")
        client = service.create_training_client_from_state_with_optimizer(imported.path)
        train(client)
        expected = platform_logprobs(client)
        on_s3.kill("trainer")
        np.testing.assert_array_equal(platform_logprobs(client), expected)
        sampling = client.save_weights_and_get_sampling_client("kept")
        scored = sampling.compute_logprobs(types.ModelInput.from_ints(TOKENS)).result()
        np.testing.assert_allclose(np.array(scored[1:], dtype=np.float64), expected, atol=1e-4)
        merged = sampling.merge_weights(tmp_path / "merged").result()
        plain = AutoModelForCausalLM.from_pretrained(merged)
        np.testing.assert_allclose(plain_logprobs(plain), expected, atol=1e-4)
        rest = service.create_rest_client()
        path = client.save_state("final").result().path
        back = rest.download_checkpoint(path, tmp_path / "back").result()
        np.testing.assert_allclose(peft_logprobs(on_s3.model_dir, back), expected, atol=1e-5)
    assert not (on_s3.data_dir / "checkpoints").exists()
    assert not (on_s3.data_dir / "blobs").exists()
