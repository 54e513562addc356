"""Redis is lost with all its data: `storage recover` brings back what the storage has, and the platform goes on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import tinker_client as tinker
from testing.platform import API_KEY, BASE_MODEL, Platform
from testing.tiny_models import save_tiny_model
from tinker_client import types


def storage(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "services.cli.main", "storage", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_checkpoints_survive_the_loss_of_redis(tmp_path: Path) -> None:
    platform = Platform(save_tiny_model(tmp_path / "model", "qwen3"), tmp_path / "data")
    platform.start()
    prompt = types.ModelInput.from_ints([5, 6, 7, 8])
    datum = types.Datum(types.ModelInput.from_ints([5, 6, 7]), {"target_tokens": [6, 7, 8]})
    with tinker.ServiceClient(base_url=platform.url, api_key=API_KEY) as service:
        training = service.create_lora_training_client(BASE_MODEL, rank=4, seed=1)
        training.forward_backward([datum], "cross_entropy")
        training.optim_step(types.AdamParams(learning_rate=0.1))
        state = training.save_state("evening", user_metadata={"lamp": "lit"}).result(60).path
        weights = training.save_weights_for_sampler("evening").result(60).path
        expected = service.create_sampling_client(weights).compute_logprobs(prompt).result(60)
    assert platform.stop() == 0
    shutil.rmtree(tmp_path / "data" / "redis")

    planned = storage("recover", "--dry-run", "--data-dir", str(tmp_path / "data"))
    assert planned.returncode == 0, planned.stderr
    assert "2 checkpoints would come back, 0 cannot" in planned.stderr
    done = storage("recover", "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 0, done.stderr
    assert "2 checkpoints recovered, 0 cannot" in done.stderr
    assert "keys create" in done.stderr

    platform.start()
    with tinker.ServiceClient(base_url=platform.url, api_key=API_KEY) as service:
        listed = service.create_rest_client().list_user_checkpoints().result(60).checkpoints
        assert {checkpoint.tinker_path for checkpoint in listed} == {state, weights}
        assert {"lamp": "lit"} in [checkpoint.user_metadata for checkpoint in listed]
        assert service.create_sampling_client(weights).compute_logprobs(prompt).result(60) == expected
        again = service.create_training_client_from_state_with_optimizer(state)
        assert again.forward([datum], "cross_entropy").result(60).metrics["loss:sum"] > 0
    assert platform.stop() == 0
