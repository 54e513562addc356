"""A published checkpoint through the whole platform: another tenant samples it and trains on from it, and no more."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

import tinker_client as tinker
from testing.platform import Platform
from tests.e2e.test_main_job import ADAM, DATA
from tinker_client import types


@pytest.fixture
def neighbour(platform: Platform) -> Iterator[tinker.ServiceClient]:
    """A client of another tenant."""
    command = [sys.executable, "-m", "services.cli.main", "keys", "create", "--tenant", "neighbour"]
    made = subprocess.run(
        [*command, "--data-dir", str(platform.data_dir)], capture_output=True, text=True, check=True, timeout=60
    )
    with tinker.ServiceClient(base_url=platform.url, api_key=made.stdout.strip()) as client:
        yield client


def test_another_tenant_samples_and_trains_on_from_a_published_checkpoint(
    service: tinker.ServiceClient, training: tinker.TrainingClient, neighbour: tinker.ServiceClient
) -> None:
    training.forward_backward(DATA, "cross_entropy")
    training.optim_step(ADAM)
    path = training.save_state("shared").result(60).path
    rest, other = service.create_rest_client(), neighbour.create_rest_client()
    with pytest.raises(tinker.NotFoundError):
        neighbour.create_sampling_client(model_path=path)
    rest.publish_checkpoint_from_tinker_path(path).result(10)

    scored = neighbour.create_sampling_client(model_path=path)
    prompt = types.ModelInput.from_ints([5, 6, 7, 8])
    own = service.create_sampling_client(model_path=path)
    assert scored.compute_logprobs(prompt).result(60) == own.compute_logprobs(prompt).result(60)
    expected = training.forward(DATA, "cross_entropy").result(60).metrics
    taken = neighbour.create_training_client_from_state_with_optimizer(path)
    assert taken.forward(DATA, "cross_entropy").result(60).metrics == expected
    taken.forward_backward(DATA, "cross_entropy")
    taken.optim_step(ADAM).result(60)
    taken.load_state(path).result(60)
    assert taken.forward(DATA, "cross_entropy").result(60).metrics == expected

    for change in (other.delete_checkpoint_from_tinker_path, other.unpublish_checkpoint_from_tinker_path):
        with pytest.raises(tinker.PermissionDeniedError):
            change(path).result(10)
    rest.unpublish_checkpoint_from_tinker_path(path).result(10)
    assert scored.compute_logprobs(prompt).result(60), "what is open keeps it"
    with pytest.raises(tinker.NotFoundError):
        taken.load_state(path).result(60)
    assert taken.forward(DATA, "cross_entropy").result(60).metrics == expected, "the run goes on"
    with pytest.raises(tinker.NotFoundError):
        other.get_checkpoint(path).result(10)
