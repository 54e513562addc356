"""RestClient: pages, single things, and deletion."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

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
        with pytest.raises(ValueError, match=r"limit: must be in \[1, 1000\]"):
            rest.list_training_runs(limit=limit)


def test_deleting(platform: LoopbackPlatform, rest: tinker.RestClient) -> None:
    assert rest.delete_checkpoint("run", "weights/a").result() is None
    assert rest.delete_checkpoint_from_tinker_path("tinker://run/sampler_weights/b").result() is None
    assert platform.deleted == ["tinker://run/weights/a", "tinker://run/sampler_weights/b"]
    with pytest.raises(ValueError, match="tinker_path: must be a tinker path"):
        rest.delete_checkpoint("run", "weights/../a")


def test_sharing_and_lifetime(platform: LoopbackPlatform, rest: tinker.RestClient) -> None:
    path = "tinker://run/weights/a"
    assert rest.get_checkpoint(path).result().expires_at is None
    assert rest.publish_checkpoint_from_tinker_path(path).result().public
    assert not rest.unpublish_checkpoint_from_tinker_path(path).result().public
    limited = rest.set_checkpoint_ttl_from_tinker_path(path, 7200).result()
    assert limited.expires_at == limited.time + timedelta(hours=2)
    assert rest.set_checkpoint_ttl_from_tinker_path(path, None).result().expires_at is None
    assert limited.user_metadata == {"purpose": "test"}
    with pytest.raises(ValueError, match="ttl_seconds"):
        rest.set_checkpoint_ttl_from_tinker_path(path, 1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tinker_path: must be a tinker path"):
        rest.publish_checkpoint_from_tinker_path("/etc/passwd")


def test_what_a_checkpoint_is_for(rest: tinker.RestClient) -> None:
    weights = rest.get_weights_info_by_tinker_path("tinker://run/sampler_weights/a").result()
    assert (weights.base_model, weights.is_lora, weights.lora_rank, weights.lora_config.seed) == (MODEL, True, 4, 1)


def test_the_run_of_a_path(service: tinker.ServiceClient, rest: tinker.RestClient) -> None:
    made = service.create_lora_training_client(MODEL).model_id
    run = rest.get_training_run_by_tinker_path(f"tinker://{made}/weights/a").result()
    assert (run.training_run_id, run.last_checkpoint) == (made, None)


def test_sessions(platform: LoopbackPlatform, rest: tinker.RestClient) -> None:
    for label in "ab":
        with tinker.ServiceClient({"label": label}, base_url=platform.url, api_key=KEY) as client:
            client.create_lora_training_client(MODEL)
    first = rest.list_sessions(limit=1).result()
    second = rest.list_sessions(limit=1, page_token=first.next_page_token).result()
    assert [item.session_id for item in (*first.sessions, *second.sessions)] == ["s2", "s1"]
    assert (first.total_size, second.next_page_token) == (2, "")
    session = rest.get_session("s2").result()
    assert session.training_run_ids == ["s2:train:0"]
    assert session.sampling_session_ids == ["s2:sample:0"]
    assert session.end_time == datetime.fromtimestamp(3, UTC)
    assert session.user_metadata == {"label": "b"}


def test_metrics_come_in_pages(rest: tinker.RestClient) -> None:
    first = rest.list_training_metrics("run", limit=3).result()
    second = rest.list_training_metrics("run", limit=3, page_token=first.next_page_token).result()
    entries = [*first.training_metrics, *second.training_metrics]
    assert [entry.seq_id for entry in entries] == [0, 1, 2, 3, 4]
    assert (entries[0].metrics, entries[0].tokens, second.next_page_token) == ({"loss:sum": -1.5}, 7, "")


async def test_the_async_twins_return_the_value(platform: LoopbackPlatform, rest: tinker.RestClient) -> None:
    assert (await rest.list_training_runs_async()).training_runs == []
    assert len((await rest.list_checkpoints_async("run")).checkpoints) == 3
    assert len((await rest.list_user_checkpoints_async()).checkpoints) == 2
    assert (await rest.get_checkpoint_async("tinker://run/weights/a")).checkpoint_type == "training"
    await rest.delete_checkpoint_async("run", "weights/a")
    await rest.delete_checkpoint_from_tinker_path_async("tinker://run/weights/b")
    assert len(platform.deleted) == 2
    path = "tinker://run/weights/a"
    assert (await rest.publish_checkpoint_from_tinker_path_async(path)).public
    assert not (await rest.unpublish_checkpoint_from_tinker_path_async(path)).public
    assert (await rest.set_checkpoint_ttl_from_tinker_path_async(path, 3600)).expires_at
    assert (await rest.get_weights_info_by_tinker_path_async(path)).lora_rank == 4
    assert (await rest.list_sessions_async()).sessions == []
    assert len((await rest.list_training_metrics_async("run")).training_metrics) == 5
    assert (await rest.get_server_capabilities_async()).supported_models
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
