"""The official SDK, unmodified, in old and new releases: every feature, and the same numbers as over gRPC."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinker_client
from testing.platform import API_KEY, BASE_MODEL, Platform
from tests.http.sdk_versions import ALL, NEWEST, RELEASES, TOUR, VERSIONS, published, run_program
from tinker_client import types
from tinker_proto.sdk.v1 import sdk_pb2

TABLE = Path(__file__).parents[2] / "docs" / "official-sdk.md"
FAULTS_OF_THE_SDK = {("0.22.7", "data_of_different_shapes"), ("0.23.4", "data_of_different_shapes")}
"""These releases give all outputs of one answer the shape of the first."""

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
    failed = {feature: outcome["error"] for feature, outcome in tours[version].items() if "error" in outcome}
    assert {(version, feature) for feature in failed} <= FAULTS_OF_THE_SDK, "\n".join(failed.values())
    absent = [feature for feature, outcome in tours[version].items() if "absent" in outcome]
    assert len(tours[version]) - len(absent) > 20
    assert version != NEWEST or not absent


def test_all_releases_get_the_same_numbers(tours: Mapping[str, Outcomes]) -> None:
    for version in VERSIONS[1:]:
        for feature in ("forward_backward_and_optim_step", "forward", "every_loss", "compute_logprobs"):
            assert tours[NEWEST][feature]["value"] == tours[version][feature]["value"], (version, feature)


@pytest.mark.skipif(not ALL, reason="make sdk-versions asks the package index")
def test_the_last_of_every_minor_release_is_tested() -> None:
    assert list(RELEASES) == published()


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
    """`WRITE_TABLES=1 make sdk-versions` writes it."""
    text = TABLE.read_text()
    before, _, rest = text.partition("<!-- table -->\n")
    table, _, after = rest.partition("\n<!-- end of table -->")
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
    columns = dict(zip(cells[0], zip(*cells[2:], strict=True), strict=True))
    columns["feature"] = tuple(feature.replace("_", " ") for feature in tours[NEWEST])
    for version in VERSIONS:
        columns[version] = tuple(_cell(version, feature, tours[version][feature]) for feature in tours[NEWEST])
    if os.environ.get("WRITE_TABLES") and ALL:
        names = ("feature", *RELEASES)
        rows = [names, ["---"] * len(names), *zip(*(columns[name] for name in names), strict=True)]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        TABLE.write_text(f"{before}<!-- table -->\n{table}\n<!-- end of table -->{after}")
        return
    assert tuple(cells[0]) == ("feature", *RELEASES)
    written = dict(zip(cells[0], zip(*cells[2:], strict=True), strict=True))
    for name in ("feature", *VERSIONS):
        assert written[name] == columns[name], name


def _cell(version: str, feature: str, outcome: Mapping[str, Any]) -> str:
    if "absent" in outcome:
        return "-"
    if (version, feature) in FAULTS_OF_THE_SDK:
        return "SDK"
    return "no" if "error" in outcome else "yes"


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
