"""The official SDK, unmodified, in its two newest releases: every feature, and the same numbers as over gRPC."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinker_client
from testing.platform import API_KEY, BASE_MODEL, Platform
from tests.http.sdk_versions import NEWEST, TOUR, VERSIONS, run_program
from tinker_client import types
from tinker_proto.sdk.v1 import sdk_pb2

TABLE = Path(__file__).parents[2] / "docs" / "official-sdk.md"
NOT_IN_THE_SDK = {("0.36.0", "inflight_follows"), ("0.36.0", "custom_loss_handle")}

Outcomes = Mapping[str, Mapping[str, Any]]


@pytest.fixture(scope="module")
def tours(sdk_platform: Platform) -> Mapping[str, Outcomes]:
    """What each release's tour has printed, by feature."""
    url = f"http://127.0.0.1:{sdk_platform.http_port}"
    return {
        version: {line["feature"]: line for line in run_program(TOUR, version, url, API_KEY, BASE_MODEL)}
        for version in VERSIONS
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_every_feature_works_with_the_unmodified_sdk(tours: Mapping[str, Outcomes], version: str) -> None:
    failed = {
        feature: outcome["error"]
        for feature, outcome in tours[version].items()
        if "error" in outcome and (version, feature) not in NOT_IN_THE_SDK
    }
    assert not failed, "\n".join(failed.values())
    assert len(tours[version]) > 20


def test_both_releases_get_the_same_numbers(tours: Mapping[str, Outcomes]) -> None:
    newest, previous = (tours[version] for version in VERSIONS)
    for feature in ("forward_backward_and_optim_step", "forward", "every_loss", "compute_logprobs"):
        assert newest[feature]["value"] == previous[feature]["value"]


def test_grpc_gives_the_same_numbers(tours: Mapping[str, Outcomes], sdk_platform: Platform) -> None:
    tour = tours[NEWEST]

    def datum(length: int, **inputs: Any) -> types.Datum:
        ids = [5 + i for i in range(length)]
        targets = np.array([*ids[1:], 11], dtype=np.int64)
        return types.Datum(
            model_input=types.ModelInput.from_ints(ids), loss_fn_inputs={"target_tokens": targets, **inputs}
        )

    def weighted(length: int) -> types.Datum:
        return datum(length, weights=np.array([0.0] + [1.0] * (length - 1), dtype=np.float32))

    with tinker_client.ServiceClient(base_url=sdk_platform.url, api_key=API_KEY) as service:
        training = service.create_lora_training_client(BASE_MODEL, rank=4, seed=7)
        losses = []
        for _ in range(3):
            done = training.forward_backward([weighted(6), weighted(4)], "cross_entropy")
            training.optim_step(types.AdamParams(learning_rate=1e-2, eps=1e-12)).result()
            losses.append(done.result().metrics["loss:sum"])
        assert losses == tour["forward_backward_and_optim_step"]["value"]
        logprobs = training.forward([weighted(6)], "cross_entropy").result().loss_fn_outputs[0]["logprobs"]
        assert logprobs.to_numpy().tolist() == tour["forward"]["value"]
        policy = datum(
            6,
            logprobs=np.full(6, -4.0, dtype=np.float32),
            advantages=np.linspace(-1, 1, 6).astype(np.float32),
        )
        for name, loss in tour["every_loss"]["value"].items():
            config = {"ppo": {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}, "dro": {"beta": 0.1}}.get(name)
            assert training.forward([policy], name, config).result().metrics["loss:sum"] == loss


def test_the_table_of_the_documentation_is_what_the_tours_have_shown(tours: Mapping[str, Outcomes]) -> None:
    """WRITE_TABLES=1 writes it."""
    rows = [f"| feature | {' | '.join(VERSIONS)} |", f"|---|{'---|' * len(VERSIONS)}"]
    for feature in tours[NEWEST]:
        cells = []
        for version in VERSIONS:
            absent = (version, feature) in NOT_IN_THE_SDK
            cells.append("not in the SDK" if absent else "no" if "error" in tours[version][feature] else "yes")
        rows.append(f"| {feature.replace('_', ' ')} | {' | '.join(cells)} |")
    table, text = "\n".join(rows), TABLE.read_text()
    before, _, rest = text.partition("<!-- table -->\n")
    _, _, after = rest.partition("\n<!-- end of table -->")
    written = f"{before}<!-- table -->\n{table}\n<!-- end of table -->{after}"
    if os.environ.get("WRITE_TABLES"):
        TABLE.write_text(written)
    assert TABLE.read_text() == written


def test_our_messages_have_the_fields_of_the_sdks() -> None:
    from tinker.proto import tinker_public_pb2 as theirs

    names = {"ProvenanceSpan": {"TokenSpan"}}
    for name, ours in sdk_pb2.DESCRIPTOR.message_types_by_name.items():
        if name in names or name == "TokenSpan":
            continue
        known = {field.number: field for field in theirs.DESCRIPTOR.message_types_by_name[name].fields}
        for field in ours.fields:
            other = known[field.number]
            assert (field.type, field.is_repeated) == (other.type, other.is_repeated), (name, field.name)
            assert (field.message_type is None) == (other.message_type is None)
