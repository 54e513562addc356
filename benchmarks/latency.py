"""What the platform adds to a call: client → gateway → queue → trainer → back, against the bare engine, in one run.

Starts a whole platform (`tinker-platform up`) with a small random model on loopback, measures the same jobs on the
engine in this process, and prints one table. Usage: python benchmarks/latency.py [--rounds N]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import grpc
import psutil
import torch
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

import tinker_client as tinker
from services.core.storage.checkpoint_store import CheckpointStore
from services.core.storage.local import LocalStorage
from services.model.base import load_base_model
from services.trainer.engine.local import LocalTrainerEngine
from services.trainer.execute import execute
from services.trainer.executors import Execution, Locations
from testing.platform import Platform
from testing.tiny_models import save_tiny_model
from tinker_client import types
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.tensor import from_array
from tinker_proto.v1 import data_pb2, operation_pb2, operation_pb2_grpc, training_pb2

BASE_MODEL = "bench"
KEY = "tml-benchmark-key"
RUN = "bench:train:0"
TOKENS = list(range(5, 37))
ADAM = types.AdamParams(learning_rate=1e-5)

console = Console()


@contextmanager
def platform(model: Path, data_dir: Path) -> Iterator[str]:
    """A whole platform with the default lease and the environment's settings; yields its gRPC address."""
    fixed = {"TINKER_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    variables = {"TINKER_LEASE_SECONDS": "10", **os.environ, **fixed}
    running = Platform(model, data_dir, variables, base_model=BASE_MODEL)
    try:
        running.start()
        yield running.address
    finally:
        running.stop()


def p50_ms(call: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds + 5):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[5:]) * 1000


class BareEngine:
    """The same jobs on the engine alone."""

    def __init__(self, model: Path, scratch: Path) -> None:
        self._engine = LocalTrainerEngine(load_base_model(str(model), name=BASE_MODEL, device="cpu"))
        self._checkpoints = CheckpointStore(LocalStorage(scratch))
        config = training_pb2.LoraConfig(rank=8, seed=0)
        self._run(
            training_pb2.CreateTrainingRunRequest(session_id="bench", base_model=BASE_MODEL, lora_config=config),
            "create_training_run",
        )

    def forward_backward(self) -> None:
        chunk = data_pb2.Chunk(encoded_text=data_pb2.EncodedTextChunk(tokens=TOKENS))
        targets = from_array(torch.tensor([*TOKENS[1:], 4]).numpy())
        datum = data_pb2.Datum(
            model_input=data_pb2.ModelInput(chunks=[chunk]), loss_fn_inputs={"target_tokens": targets}
        )
        request = training_pb2.ForwardBackwardRequest(training_run_id=RUN, data=[datum], loss_fn="cross_entropy")
        self._run(request, "forward_backward")

    def optim_step(self) -> None:
        params = training_pb2.AdamParams(
            learning_rate=1e-5, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0, grad_clip_norm=0
        )
        self._run(training_pb2.OptimStepRequest(training_run_id=RUN, adam_params=params), "optim_step")

    def _run(self, request: Message, field: str) -> None:
        job = job_pb2.Job(operation=f"{RUN}:0", tenant="bench")
        getattr(job, field).CopyFrom(request)
        execute(Execution(self._engine, self._checkpoints, job, Locations()))


def datum() -> types.Datum:
    return types.Datum(types.ModelInput.from_ints(tokens=TOKENS), {"target_tokens": [*TOKENS[1:], 4]})


def outstanding(client: tinker.ServiceClient, run: tinker.TrainingClient, count: int) -> tuple[float, int]:
    """Seconds for `count` operations submitted without waiting, and the TCP connections that it took."""
    start = time.perf_counter()
    futures = [run.forward([datum()], "cross_entropy") for _ in range(count)]
    connections = [c for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_ESTABLISHED]
    for future in futures:
        future.result()
    return time.perf_counter() - start, len(connections)


def get_operation(address: str, name: str) -> operation_pb2.Operation:
    request = operation_pb2.GetOperationRequest(name=name)
    return operation_stub(address).GetOperation(request, metadata=(("x-api-key", KEY),))


@cache
def operation_stub(address: str) -> operation_pb2_grpc.OperationServiceStub:
    return operation_pb2_grpc.OperationServiceStub(grpc.insecure_channel(address))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)  # as the trainer below: what differs is the way to the engine, not the engine
    with tempfile.TemporaryDirectory() as scratch:
        model = save_tiny_model(Path(scratch) / "model", "qwen3")
        console.print("bare engine ...")
        bare = BareEngine(model, Path(scratch) / "bare")
        bare_forward_backward, bare_optim = p50_ms(bare.forward_backward, rounds), p50_ms(bare.optim_step, rounds)
        console.print("whole platform ...")
        with (
            platform(model, Path(scratch) / "data") as address,
            tinker.ServiceClient(base_url=f"grpc://{address}", api_key=KEY) as client,
        ):
            run = client.create_lora_training_client(BASE_MODEL, rank=8, seed=0)
            forward_backward = p50_ms(lambda: run.forward_backward([datum()], "cross_entropy").result(), rounds)
            optim = p50_ms(lambda: run.optim_step(ADAM).result(), rounds)
            finished = run.forward([datum()], "cross_entropy")
            finished.result()
            again = p50_ms(finished.result, rounds)
            seconds, connections = outstanding(client, run, 1000)
            asked = p50_ms(lambda: get_operation(address, f"{run.model_id}:1"), rounds)
    table = Table("p50 in ms", "bare engine", "platform", "added", "target")
    for name, alone, whole, target in (
        ("forward_backward, 1 datum", bare_forward_backward, forward_backward, "≤ 10"),
        ("optim_step", bare_optim, optim, "≤ 15"),
    ):
        table.add_row(name, f"{alone:.2f}", f"{whole:.2f}", f"{whole - alone:.2f}", target)
    table.add_row("result() of a finished future", "", f"{again:.3f}", "", "≤ 3")
    table.add_row("GetOperation of a finished one", "", f"{asked:.2f}", "", "≤ 3")
    console.print(table)
    console.print(f"1,000 operations outstanding: {seconds:.2f} s in all, over {connections} TCP connection(s)")


if __name__ == "__main__":
    main()
