"""RestClient: pages, single things, and deletion."""

from __future__ import annotations

import pytest

import tinker_client as tinker
from tests.client.loopback import KEY, LoopbackPlatform
from tests.client.toy_operations import MODEL


@pytest.fixture
def rest(service: tinker.ServiceClient) -> tinker.RestClient:
    return service.create_rest_client()


def test_training_runs_come_in_pages(service: tinker.ServiceClient, rest: tinker.RestClient) -> None:
    made = [service.create_lora_training_client(MODEL).model_id for _ in range(5)]
    first = rest.list_training_runs(limit=3).result()
    second = rest.list_training_runs(limit=3, page_token=first.next_page_token).result()
    listed = [run.training_run_id for run in [*first.training_runs, *second.training_runs]]
    assert listed == made[::-1]
    assert (first.total_size, second.next_page_token) == (5, "")


def test_one_training_run(service: tinker.ServiceClient, rest: tinker.RestClient) -> None:
    made = service.create_lora_training_client(MODEL).model_id
    assert rest.get_training_run(made).result().base_model == MODEL
    with pytest.raises(tinker.NotFoundError):
        rest.get_training_run("s9:train:9").result()


def test_all_checkpoints_of_a_run_and_pages_of_all_checkpoints(rest: tinker.RestClient) -> None:
    checkpoints = rest.list_checkpoints("run").result().checkpoints
    assert [checkpoint.checkpoint_id for checkpoint in checkpoints] == ["weights/2", "weights/1", "weights/0"]
    page = rest.list_user_checkpoints(limit=2).result()
    assert len(page.checkpoints) == 2
    assert len(rest.list_user_checkpoints(limit=2, page_token=page.next_page_token).result().checkpoints) == 1


def test_a_page_size_out_of_range_is_refused(rest: tinker.RestClient) -> None:
    for limit in (0, -1, 1001):
        with pytest.raises(ValueError, match="allowed are 1 to 1000"):
            rest.list_training_runs(limit=limit)


def test_deleting(platform: LoopbackPlatform, rest: tinker.RestClient) -> None:
    assert rest.delete_checkpoint("run", "weights/a").result() is None
    assert rest.delete_checkpoint_from_tinker_path("tinker://run/sampler_weights/b").result() is None
    assert platform.deleted == ["tinker://run/weights/a", "tinker://run/sampler_weights/b"]
    with pytest.raises(ValueError, match="is not a tinker path"):
        rest.delete_checkpoint("run", "weights/../a")


async def test_the_async_twins_return_the_value(platform: LoopbackPlatform, rest: tinker.RestClient) -> None:
    assert (await rest.list_training_runs_async()).training_runs == []
    assert len((await rest.list_checkpoints_async("run")).checkpoints) == 3
    assert len((await rest.list_user_checkpoints_async()).checkpoints) == 2
    assert (await rest.get_checkpoint_async("tinker://run/weights/a")).checkpoint_type == "training"
    await rest.delete_checkpoint_async("run", "weights/a")
    await rest.delete_checkpoint_from_tinker_path_async("tinker://run/weights/b")
    assert len(platform.deleted) == 2
    with pytest.raises(tinker.NotFoundError):
        await rest.get_training_run_async("s9:train:9")


def test_it_can_be_made_alone(platform: LoopbackPlatform) -> None:
    rest = tinker.RestClient(base_url=platform.url, api_key=KEY)
    assert rest.list_training_runs().result().training_runs == []
    rest.close()
    with pytest.raises(tinker.TinkerError, match="closed"):
        rest.list_training_runs().result()


def test_closing_a_shared_one_leaves_the_service_client_alone(
    service: tinker.ServiceClient, rest: tinker.RestClient
) -> None:
    rest.close()
    assert service.get_server_capabilities().supported_models
