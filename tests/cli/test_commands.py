"""Every command: what it asks of the platform and what it prints, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import typer

import tinker_client as tinker
from services.cli import main
from services.core.errors import DataLossError, InvalidArgumentError, NotFoundError, PlatformError
from testing.platform import free_port
from tests.cli.conftest import Run
from tests.client.loopback import KEY, LoopbackPlatform
from tests.client.toy_operations import MODEL

PATH = "tinker://run/weights/a"


@pytest.fixture
def runs(platform: LoopbackPlatform) -> list[str]:
    """Five training runs, oldest first."""
    with tinker.ServiceClient(base_url=platform.url, api_key=KEY) as service:
        return [service.create_lora_training_client(MODEL).model_id for _ in range(5)]


def test_runs_newest_first_as_many_as_are_wanted(tinker_platform: Run, runs: list[str]) -> None:
    table = tinker_platform("run", "list", "--limit", "2").out.splitlines()
    assert [line.split()[0] for line in table[1:3]] == runs[:-3:-1]
    assert table[3] == "Newest 2 only; --limit 0 shows all."
    listed = tinker_platform("run", "list", "--limit", "5", "-f", "json").json
    assert [run["training_run_id"] for run in listed["runs"]] == runs[::-1]
    assert listed["has_more"] is False


def test_limit_0_pages_through_everything(
    tinker_platform: Run, platform: LoopbackPlatform, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.cli.listing.LARGEST_PAGE", 2)
    listed = tinker_platform("-f", "json", "run", "list", "--limit", "0").json["runs"]
    assert [run["training_run_id"] for run in listed] == runs[::-1]
    assert platform.calls["ListTrainingRuns"] == 3


def test_a_list_reads_no_page_that_is_not_shown(
    tinker_platform: Run, platform: LoopbackPlatform, runs: list[str]
) -> None:
    assert tinker_platform("-f", "json", "run", "list", "--limit", "1").json["has_more"] is True
    assert platform.calls["ListTrainingRuns"] == 1


def test_nothing_yet_is_said_in_words_and_is_an_empty_list_in_json(tinker_platform: Run) -> None:
    assert tinker_platform("run", "list").out == "No training runs yet.\n"
    assert tinker_platform("run", "list", "-f", "json").json == {"runs": [], "has_more": False}


def test_a_run(tinker_platform: Run, runs: list[str]) -> None:
    told = tinker_platform("run", "info", runs[0])
    assert (told.code, told.err) == (0, "")
    assert runs[0] in told.out
    assert MODEL in told.out
    assert "No optimizer step yet." in told.out
    assert tinker_platform("run", "info", runs[0], "-f", "json").json["latest_step"] is None


def test_a_picture_of_a_run_without_a_step_is_refused(tinker_platform: Run, runs: list[str], tmp_path: Path) -> None:
    refused = tinker_platform("run", "info", runs[0], "--png", "curves.png")
    assert (refused.code, "no optimizer step" in refused.err) == (2, True)
    assert not (tmp_path / "curves.png").exists()


def test_checkpoints_of_everybody_and_of_a_run(tinker_platform: Run) -> None:
    assert "tinker://any/weights/2" in tinker_platform("checkpoint", "list").out
    table = tinker_platform("checkpoint", "list", "--run-id", "r", "--limit", "0").out.splitlines()
    assert [line.split()[-1] for line in table[1:]] == [f"tinker://r/weights/{index}" for index in (2, 1, 0)]
    assert all("123 bytes" in line for line in table[1:])


def test_checkpoints_of_a_type_or_a_time(tinker_platform: Run) -> None:
    def found(*options: str) -> int:
        return len(tinker_platform("checkpoint", "list", "-f", "json", *options).json["checkpoints"])

    assert (found("--type", "weights"), found("--type", "sampler_weights")) == (3, 0)
    made = "2025-01-02T03:04:05"
    assert (found("--after", made), found("--before", made)) == (3, 0)
    assert (found("--after", "2025-01-02T03:04:06"), found("--before", "2025-01-03")) == (0, 3)
    assert found("--before", "2025-01-02T03:04:05+01:00") == 0


def test_a_checkpoint(tinker_platform: Run) -> None:
    told = tinker_platform("checkpoint", "info", PATH).out
    assert "can be loaded for training and sampled" in told
    assert "purpose=test" in told
    assert "never" in told
    as_json = tinker_platform("checkpoint", "info", PATH, "-f", "json").json
    assert as_json["tinker_path"] == PATH
    assert (as_json["size_bytes"], as_json["lora_rank"], as_json["expires_at"]) == (123, 4, None)
    assert as_json["time"] == "2025-01-02T03:04:05.000Z"


def test_publishing_and_taking_it_back(tinker_platform: Run, platform: LoopbackPlatform) -> None:
    assert tinker_platform("checkpoint", "publish", PATH).out == f"published {PATH}\n"
    assert platform.public == {PATH}
    assert tinker_platform("checkpoint", "unpublish", PATH, "-f", "json").json["public"] is False
    assert platform.public == set()


def test_a_lifetime_is_set_or_removed(tinker_platform: Run, platform: LoopbackPlatform) -> None:
    assert tinker_platform("checkpoint", "set-ttl", PATH, "--ttl", "7200").out.startswith(f"{PATH} expires: 2025-01-02")
    assert platform.lifetimes == {PATH: 7200}
    assert tinker_platform("checkpoint", "set-ttl", PATH, "--remove").out == f"{PATH} expires: never\n"
    assert platform.lifetimes == {PATH: None}
    for options in ([], ["--ttl", "7200", "--remove"]):
        refused = tinker_platform("checkpoint", "set-ttl", PATH, *options)
        assert (refused.code, "exactly one of --ttl and --remove" in refused.err) == (2, True)


def test_deleting_asks_once_and_takes_no_for_an_answer(tinker_platform: Run, platform: LoopbackPlatform) -> None:
    for answer in ("n\n", "\n", ""):
        kept = tinker_platform("checkpoint", "delete", PATH, "tinker://run/weights/b", stdin=answer)
        assert (kept.code, kept.out) == (1, "")
        assert kept.err.count("Delete these 2 checkpoints?") == 1
        assert "nothing was deleted" in kept.err
    assert platform.deleted == []
    gone = tinker_platform("checkpoint", "delete", PATH, stdin="y\n")
    assert (gone.code, gone.out) == (0, f"deleted {PATH}\n")
    assert platform.deleted == [PATH]


def test_deleting_what_list_shows(tinker_platform: Run, platform: LoopbackPlatform) -> None:
    shown = tinker_platform("checkpoint", "delete", "--run-id", "r", "--before", "2025-01-03", stdin="y\n")
    paths = [f"tinker://r/weights/{index}" for index in (2, 1, 0)]
    assert [line.split()[-1] for line in shown.err.splitlines()[1:4]] == paths, "shown before it asks"
    assert "3 checkpoints, 369 bytes" in shown.err
    assert sorted(platform.deleted) == sorted(paths)
    assert tinker_platform("checkpoint", "delete", "--before", "2020-01-01", "-y").out == "No checkpoints match.\n"


def test_deleting_says_of_every_one_what_became_of_it(tinker_platform: Run, platform: LoopbackPlatform) -> None:
    platform.refuse_before["DeleteCheckpoint"].append(NotFoundError("there is no checkpoint x"))
    paths = [f"tinker://run/weights/{index}" for index in range(40)]
    mixed = tinker_platform("checkpoint", "delete", *paths, *paths, "-y", "-f", "json")
    assert mixed.code == 1
    assert len(mixed.json["deleted"]) == 39, "a path that is named twice is deleted once"
    ((failed,), gone) = mixed.json["failed"], set(mixed.json["deleted"])
    assert failed["error"] == "there is no checkpoint x"
    assert {failed["tinker_path"], *gone} == set(paths)
    assert "1 checkpoint could not be deleted" in mixed.err


def test_a_wrong_path_deletes_none_of_the_others(tinker_platform: Run, platform: LoopbackPlatform) -> None:
    refused = tinker_platform("checkpoint", "delete", PATH, "tinker://run/weights/../b", "-y")
    assert (refused.code, "must be a tinker path" in refused.err) == (2, True)
    assert platform.deleted == []


def test_deleting_without_saying_what_or_twice_is_refused(tinker_platform: Run, platform: LoopbackPlatform) -> None:
    for arguments in ((), (PATH, "--run-id", "r")):
        assert tinker_platform("checkpoint", "delete", *arguments, "-y").code == 2
    assert platform.deleted == []


def test_sessions(tinker_platform: Run, runs: list[str]) -> None:
    (session,) = {run.split(":")[0] for run in runs}
    assert tinker_platform("session", "list").out.splitlines()[1].split()[:2] == [session, "open"]
    told = tinker_platform("session", "info", session).out
    assert f"{session}:train:0" in told
    assert f"{session}:sample:0" in told
    as_json = tinker_platform("session", "info", session, "-f", "json").json
    assert as_json["training_run_ids"] == [f"{session}:train:0"]


def test_models_by_a_part_of_their_name(tinker_platform: Run) -> None:
    assert tinker_platform("model", "list", MODEL[:3].upper()).out.splitlines()[1].split()[0] == MODEL
    assert tinker_platform("model", "list", "-f", "json").json["models"][0]["max_context_length"] == 64
    assert "whose name contains 'zebra'" in tinker_platform("model", "list", "zebra").out
    assert tinker_platform("model", "list", "zebra", "-f", "json").json == {"models": []}


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (NotFoundError("there is no training run r"), 3),
        (InvalidArgumentError("that is no training run"), 2),
        (DataLossError("run r is damaged"), 1),
    ],
)
def test_a_refusal_is_one_sentence_and_a_code(
    tinker_platform: Run, platform: LoopbackPlatform, fault: PlatformError, code: int
) -> None:
    platform.refuse_before["GetTrainingRun"].append(fault)
    refused = tinker_platform("run", "info", "r", "-f", "json")
    assert (refused.code, refused.out, refused.err) == (code, "", f"Error: {fault.message}\n")


def test_an_unknown_key_no_key_and_no_address(tinker_platform: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tinker_platform("run", "list", "--api-key", "tml-wrong").code == 4
    monkeypatch.delenv("TINKER_API_KEY")
    refused = tinker_platform("run", "list")
    assert (refused.code, "--api-key" in refused.err) == (4, True)
    assert tinker_platform("run", "list", "--base-url", "http://127.0.0.1:8000", "--api-key", KEY).code == 2


def test_nobody_there_is_5(tinker_platform: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinker_client._transport.FIRST_CONTACT", timedelta(seconds=0.3))
    alone = tinker_platform("run", "list", "--base-url", f"grpc://127.0.0.1:{free_port()}")
    assert (alone.code, alone.out) == (5, "")
    assert "no platform answers at grpc://127.0.0.1:" in alone.err


def test_ctrl_c_is_130(tinker_platform: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("services.cli.session.in_pages", interrupted)
    assert tinker_platform("session", "list").code == 130


def test_json_is_refused_where_it_would_be_ignored(tinker_platform: Run) -> None:
    refused = tinker_platform("-f", "json", "keys", "list")
    assert (refused.code, refused.out) == (2, "")


def test_a_platform_that_runs_in_this_directory_is_found(
    tinker_platform: Run, platform: LoopbackPlatform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TINKER_GRPC_URL")
    (tmp_path / "tinker-data").mkdir()
    (tmp_path / "tinker-data" / "grpc-url").write_text(platform.url)
    assert tinker_platform("model", "list").out.splitlines()[1].startswith(MODEL)


def commands_below(group: Any, *path: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands_below(command, *path, name)
        else:
            yield *path, name


COMMANDS = list(commands_below(typer.main.get_command(main.app)))
OF_USERS = [path for path in COMMANDS if path[0] in main.USERS_GROUPS]
IMPERATIVES = {
    *(
        "Check",
        "Create",
        "Delete",
        "Download",
        "Import",
        "List",
        "Make",
        "Merge",
        "Publish",
        "Recover",
        "Revoke",
        "Run",
        "Set",
    ),
    *("Show", "Verify"),
}


def test_every_command_is_known_to_these_tests() -> None:
    assert len(COMMANDS) == len(set(COMMANDS)) == 26
    assert len(OF_USERS) == 14


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_is_an_imperative_sentence_and_an_example(tinker_platform: Run, path: tuple[str, ...]) -> None:
    told = tinker_platform(*path, "--help")
    assert told.code == 0
    description, example = told.out.split("Example:", 1)
    sentence = " ".join(description.partition("Usage:")[2].partition("\n")[2].split())
    assert sentence.split()[0] in IMPERATIVES
    assert sentence.endswith(".")
    assert example.split("\n")[0].strip().startswith(f"tinker-platform {' '.join(path)}")
    assert tinker_platform(*path, "-h").out == told.out


@pytest.mark.parametrize("path", OF_USERS, ids=" ".join)
def test_commands_of_users_have_the_shared_options(tinker_platform: Run, path: tuple[str, ...]) -> None:
    told = tinker_platform(*path, "--help")
    for option in ("--format", "--base-url", "--api-key"):
        assert option in told.out


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_and_argument_is_explained(path: tuple[str, ...]) -> None:
    command = typer.main.get_command(main.app)
    for name in path:
        command = command.commands[name]
    assert [each.name for each in command.params if not (each.help or "").endswith(".")] == []
