"""Importing costs nothing, closing ends everything, and no process hangs at its end."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import tinker_client as tinker
from testing.waiting import wait_until
from tests.client.loopback import KEY, LoopbackPlatform
from tests.client.toy_operations import MODEL
from tinker_client import types

ADAM = types.AdamParams()


def run_python(program: str, url: str = "grpc://127.0.0.1:1") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TINKER_GRPC_URL": url, "TINKER_API_KEY": KEY}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )


def test_importing_brings_neither_torch_nor_transformers_nor_a_thread() -> None:
    done = run_python(
        "import sys, threading, tinker_client as tinker\n"
        "tinker.Datum(tinker.ModelInput.from_ints([1]), {'target_tokens': [1]})\n"
        "print([name for name in ('torch', 'transformers', 'services') if name in sys.modules])\n"
        "print(threading.active_count())"
    )
    assert (done.stdout, done.stderr) == ("[]\n1\n", "")


def test_a_script_that_forgets_to_close_ends_its_session_and_exits_at_once(platform: LoopbackPlatform) -> None:
    done = run_python(
        "import tinker_client as tinker\n"
        "training = tinker.ServiceClient().create_lora_training_client('toy/model')\n"
        "print(training.optim_step(tinker.AdamParams()).result().metrics)",
        platform.url,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "grad_norm:mean" in done.stdout
    assert platform.ended == ["s1"]


def test_a_script_that_fails_with_work_outstanding_exits_with_its_error(platform: LoopbackPlatform) -> None:
    platform.operations.held.add("s1:train:0:1")
    done = run_python(
        "import tinker_client as tinker\n"
        "training = tinker.ServiceClient().create_lora_training_client('toy/model')\n"
        "futures = [training.optim_step(tinker.AdamParams()) for _ in range(100)]\n"
        "raise SystemExit('my own end')",
        platform.url,
    )
    assert (done.returncode, done.stderr) == (1, "my own end\n")
    assert platform.ended == ["s1"]


def test_using_the_client_after_its_end_at_exit_is_refused(platform: LoopbackPlatform) -> None:
    done = run_python(
        "import atexit, tinker_client as tinker\n"
        "def late():\n"
        "    try:\n"
        "        service.get_server_capabilities()\n"
        "    except RuntimeError as error:\n"
        "        print(error)\n"
        "atexit.register(late)\n"
        "service = tinker.ServiceClient()\n"
        "service.get_server_capabilities()",
        platform.url,
    )
    assert (done.stdout, done.stderr) == ("the interpreter is exiting: the client has been closed\n", "")


def test_a_platform_that_is_gone_does_not_hold_up_the_exit(platform: LoopbackPlatform) -> None:
    program = (
        "import sys, tinker_client as tinker\n"
        "training = tinker.ServiceClient().create_lora_training_client('toy/model')\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()"
    )
    environment = {**os.environ, "TINKER_GRPC_URL": platform.url, "TINKER_API_KEY": KEY}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        platform.stop()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(60) == 0, "it waits for as long as a client that goes on would"
    platform.start()


def test_nothing_is_sent_before_the_first_use(platform: LoopbackPlatform) -> None:
    with tinker.ServiceClient(base_url=platform.url, api_key=KEY) as service:
        service.create_rest_client()
        assert dict(platform.calls) == {}
    assert dict(platform.calls) == {}


def test_looking_things_up_needs_no_session(platform: LoopbackPlatform, service: tinker.ServiceClient) -> None:
    service.get_server_capabilities()
    service.create_rest_client().list_training_runs().result()
    assert platform.calls["CreateSession"] == 0


def test_the_session_gets_the_users_labels_and_ends_with_the_block(platform: LoopbackPlatform) -> None:
    with tinker.ServiceClient({"team": "a"}, base_url=platform.url, api_key=KEY) as service:
        service.create_sampling_client(base_model=MODEL)
        service.create_sampling_client(base_model=MODEL)
        assert platform.session_metadata == {"s1": {"team": "a"}}
    assert platform.ended == ["s1"]
    wait_until(lambda: not platform.operations.watchers)


async def test_an_async_block_ends_it_too(platform: LoopbackPlatform) -> None:
    async with tinker.ServiceClient(base_url=platform.url, api_key=KEY) as service:
        await service.create_sampling_client_async(base_model=MODEL)
    assert platform.ended == ["s1"]


def test_closing_fails_what_is_outstanding_and_what_comes_later(platform: LoopbackPlatform) -> None:
    service = tinker.ServiceClient(base_url=platform.url, api_key=KEY)
    training = service.create_lora_training_client(MODEL)
    sampler = service.create_sampling_client(base_model=MODEL)
    platform.operations.hold_all = True
    outstanding = training.optim_step(ADAM)
    wait_until(lambda: platform.calls["OptimStep"] == 1)
    service.close()
    with pytest.raises(tinker.TinkerError, match="the client was closed"):
        outstanding.result(10)
    for attempt in (
        lambda: training.optim_step(ADAM).result(10),
        lambda: sampler.compute_logprobs(types.ModelInput.from_ints([1])).result(10),
        service.get_server_capabilities,
        lambda: service.create_lora_training_client(MODEL),
    ):
        with pytest.raises(tinker.TinkerError, match="this client is closed"):
            attempt()
    service.close()  # again is no harm
    assert platform.ended == ["s1"]


def test_one_service_client_can_be_closed_while_another_works(platform: LoopbackPlatform) -> None:
    first = tinker.ServiceClient(base_url=platform.url, api_key=KEY)
    with tinker.ServiceClient(base_url=platform.url, api_key=KEY) as second:
        first.create_sampling_client(base_model=MODEL)
        sampler = second.create_sampling_client(base_model=MODEL)
        first.close()
        assert sampler.compute_logprobs(types.ModelInput.from_ints([1])).result(10)
