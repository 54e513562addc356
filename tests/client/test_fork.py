"""A process that uses the client may fork: children do their own work, and the parent's results arrive as ever."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.client.loopback import KEY, LoopbackPlatform

PARENT = """
import collections, gc, multiprocessing, os, signal, sys
import tinker_client as tinker

service = tinker.ServiceClient()
training = service.create_lora_training_client("toy/model")
done = training.optim_step(tinker.AdamParams())
done.result(30)

def submit():
    return [training.optim_step(tinker.AdamParams()) for _ in range(3)]

def forked(child):
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(20)  # one that hangs is killed
    child()
    os._exit(0)

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""

CHILDREN = (
    PARENT
    + """
def collect():
    gc.collect()

def leave():
    sys.exit(0)  # with all that an interpreter does at its end

endings = collections.Counter()
for turn in range(40):
    futures = submit()
    pid = forked((collect, leave)[turn % 2])
    for future in futures:
        future.result(30)
    endings[ended(pid)] += 1
for _ in range(3):
    futures = submit()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(abs, range(-8, 0)) == list(range(8, 0, -1))
    for future in futures:
        future.result(30)
print(dict(endings))
"""
)

USES = (
    PARENT
    + """
def refused(name, call):
    try:
        call()
    except tinker.ForkedClientError as error:
        print(name, "refused", "make a new ServiceClient in the child process" in str(error), flush=True)

async def awaited():
    await pending

def use():
    import asyncio
    refused("inherited", lambda: service.get_server_capabilities())
    refused("operation", lambda: training.optim_step(tinker.AdamParams()))
    refused("tokenizer", lambda: training.get_tokenizer())
    refused("result", lambda: pending.result(15))
    refused("await", lambda: asyncio.run(awaited()))
    refused("future", lambda: pending.future())
    refused("new", lambda: tinker.ServiceClient())
    service.close()  # as the end of a `with` block that the fork was in
    print("done", type(done.result()).__name__, flush=True)

pending = training.optim_step(tinker.AdamParams())
print("ended", ended(forked(use)), flush=True)
print("parent", bool(service.get_server_capabilities()), flush=True)
"""
)

FIRST = """
import multiprocessing, tinker_client as tinker

def look():
    print(bool(tinker.ServiceClient().get_server_capabilities()), flush=True)

child = multiprocessing.get_context("fork").Process(target=look)
child.start()
child.join()
"""


def run_python(program: str, platform: LoopbackPlatform) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TINKER_GRPC_URL": platform.url, "TINKER_API_KEY": KEY}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],  # Python itself warns of forks beside threads, since 3.12
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )


def test_children_end_well_and_the_parents_results_arrive(platform: LoopbackPlatform) -> None:
    done = run_python(CHILDREN, platform)
    assert (done.stdout, done.stderr) == ("{0: 40}\n", "")


def test_a_child_that_uses_the_client_is_told_at_once_what_to_do(platform: LoopbackPlatform) -> None:
    platform.operations.held.add("s1:train:0:2")
    done = run_python(USES, platform)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        *(
            f"{name} refused True"
            for name in ("inherited", "operation", "tokenizer", "result", "await", "future", "new")
        ),
        "done OptimStepResponse",
        "ended 0",
        "parent True",
    ]
    assert platform.ended == ["s1"]


def test_a_child_of_a_process_that_has_made_no_client_makes_its_own(platform: LoopbackPlatform) -> None:
    done = run_python(FIRST, platform)
    assert (done.stdout, done.stderr) == ("True\n", "")
