"""The trainer's targets T1 to T7, each against its opponent in one run; prints one table.

CPU time of one thread; opponents take turns, and a ratio is the median of its repetitions, with the spread beside it.
Usage: python benchmarks/trainer.py [--quick]
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from latency import BASE_MODEL, KEY, BareEngine, datum, p50_ms, platform
from naive_peft import NaivePeft
from rich.console import Console
from rich.table import Table
from transformers import Qwen3Config

import tinker_client as tinker
from services.model.adapters import AdapterConfig
from services.model.base import BaseModel, load_base_model
from services.model.logprobs import target_logprobs_and_gradient
from services.trainer.batch import Example
from services.trainer.engine import TrainerEngine
from services.trainer.losses import resolve_loss
from services.trainer.optimizer import AdamParams
from services.trainer.work import Outcome, Work
from tests.model.plain_peft import PlainPeft
from tests.model.rows import perturbed_adapter
from tests.model.tiny import save_model
from tinker_client import types

ADAM = AdamParams(learning_rate=1e-4, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.0, grad_clip_norm=0.0)
CONFIG = AdapterConfig(8, seed=0)
LOSS = resolve_loss("cross_entropy", {})
VOCAB = 8192

console = Console()
table = Table("target", "what", "wanted", "measured", "spread", "")


def report(target: str, what: str, wanted: float, values: Sequence[float], *, at_most: bool = False) -> None:
    """Adds a row: the median of what was measured against what is wanted."""
    middle = statistics.median(values)
    met = middle <= wanted if at_most else middle >= wanted
    sign = "≤" if at_most else "≥"
    table.add_row(
        target,
        what,
        f"{sign} {wanted:.3g}",
        f"{middle:.3g}",
        f"{min(values):.3g} to {max(values):.3g}",
        "met" if met else "MISSED",
    )
    console.print(f"{target} {what}: {middle:.3g} (wanted {sign} {wanted:.3g})")


def qwen(directory: Path, *, hidden: int = 512, layers: int = 8, vocab: int = VOCAB) -> Path:
    heads = hidden // 64
    config = Qwen3Config(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=64,
        intermediate_size=3 * hidden,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    return save_model(directory, config)


def load(source: Path) -> BaseModel:
    return load_base_model(str(source), name="bench", device="cpu")


def example(length: int, seed: int, prefix: Sequence[int] = ()) -> Example:
    draw = random.Random(seed)
    tokens = [*prefix, *(draw.randrange(3, VOCAB) for _ in range(length - len(prefix)))]
    targets = torch.tensor([*tokens[1:], 4])[:, None]
    return Example(torch.tensor(tokens), targets, {"weights": torch.ones(length, 1)}, (length,))


def seconds(call: Callable[[], object]) -> float:
    gc.collect()
    start = time.process_time()
    call()
    return time.process_time() - start


def ratios(ours: Callable[[], object], opponent: Callable[[], object], repeats: int) -> list[float]:
    """Opponent's CPU time over ours, once for each repetition, after a first one that does not count."""
    ours(), opponent()
    return [seconds(opponent) / seconds(ours) for _ in range(repeats)]


def engine_with(source: Path, runs: int) -> TrainerEngine:
    engine = TrainerEngine(load(source))
    for index in range(runs):
        engine.create_run(f"r{index}", AdapterConfig(8, seed=index))
    return engine


def jobs(examples: Sequence[Sequence[Example]]) -> list[Work]:
    return [Work(f"r{index}", list(own), LOSS, True) for index, own in enumerate(examples)]


def many_tenants(source: Path, repeats: int) -> None:
    """T1 and T2: a step of many runs, each one datum, against one after another and against plain PEFT."""
    for name, runs, length, wanted_own, wanted_naive in (
        ("T1", 8, 8, 2.0, 3.0),
        ("T1", 16, 8, 2.5, 5.0),
        ("T1", 8, 16, 2.0, 3.0),
        ("T2", 8, 512, 0.9, None),
    ):
        one_step(source, name, runs, length, wanted_own, wanted_naive, repeats if length < 512 else 2)


def one_step(
    source: Path, name: str, runs: int, length: int, wanted_own: float, wanted_naive: float | None, repeats: int
) -> None:
    """forward_backward and optim_step of every run."""
    engine = engine_with(source, runs)
    work = jobs([[example(length, index)] for index in range(runs)])

    def step(batches: Sequence[Sequence[Work]]) -> None:
        for batch in batches:
            engine.run_pass(batch)
        for item in work:
            engine.optim_step(item.training_run_id, ADAM)

    what = f"{runs} runs x {length} tokens: one pass against"
    singly = [[item] for item in work]
    report(name, f"{what} one by one", wanted_own, ratios(lambda: step([work]), lambda: step(singly), repeats))
    if wanted_naive is None:
        return
    naive = NaivePeft(source, CONFIG, runs)

    def naive_step() -> None:
        for index, item in enumerate(work):
            (own,) = item.examples
            naive.forward_backward(index, [own.tokens.tolist()], [own.targets[:, 0].tolist()])
            naive.optim_step(index)

    report(name, f"{what} plain PEFT", wanted_naive, ratios(lambda: step([work]), naive_step, repeats))


def packing(source: Path, repeats: int) -> None:
    """T3: examples of 16 to 512 tokens packed, against batches of eight padded as they arrive."""
    draw = random.Random(0)
    examples = [example(draw.randint(16, 512), index) for index in range(16)]
    engine = engine_with(source, 1)
    batches = [examples[start : start + 8] for start in range(0, 16, 8)]
    padded = [[example(max(e.shape[0] for e in batch), 99) for _ in batch] for batch in batches]

    def pad() -> None:
        engine.share_prefixes = False
        for batch in padded:
            engine.run_pass(jobs([batch]))
        engine.share_prefixes = True

    report("T3", "packed against padded", 1.4, ratios(lambda: engine.run_pass(jobs([examples])), pad, repeats))


def peak_bytes(call: Callable[[], object]) -> int:
    """Most memory that a call takes beyond what was taken before (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")

    def status(name: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024

    before = status("VmRSS")
    call()
    return status("VmHWM") - before


class Head:
    """The unembedding of a model with 152k words, our way and all logits at once."""

    def __init__(self, source: Path, length: int) -> None:
        torch.set_num_threads(1)
        self._base = load(source)
        self._adapter = perturbed_adapter(self._base, AdapterConfig(8, train_unembed=False, seed=0))
        self._gradient = self._adapter.zeros()
        self._hidden = torch.randn(length, 256) * 0.1
        self._targets = torch.randint(3, 1000, (length, 1))

    def chunked(self) -> None:
        target_logprobs_and_gradient(
            self._base,
            self._hidden,
            self._targets,
            adapter=self._adapter,
            gradient=self._gradient,
            loss_gradient=lambda _, logprobs: -torch.ones_like(logprobs),
        )

    def naive(self) -> None:
        leaf = self._hidden.clone().requires_grad_()
        logits = leaf @ self._base.module.get_parameter("lm_head.weight").t()
        (-logits.log_softmax(-1).gather(1, self._targets).sum()).backward()


def head_memory(source: Path, length: int, way: str) -> int:
    """Peak of one call in a process that has done nothing else: an allocator may keep what it once had."""
    return peak_bytes(getattr(Head(source, length), way))


def head(scratch: Path, lengths: Sequence[int], repeats: int) -> None:
    """T4: the chunked head against all logits at once."""
    source = qwen(scratch, hidden=256, layers=1, vocab=151_936)
    for length, wanted in ((1024, 7), (4096, 25)):
        if length not in lengths:
            continue
        spent = {}
        for way in ("naive", "chunked"):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                spent[way] = fresh.submit(head_memory, source, length, way).result()
        ratio = spent["naive"] / spent["chunked"]
        report("T4", f"head, {length} tokens: memory of all logits over ours", wanted, [ratio])
        ways = Head(source, length)
        times = [1 / ratio for ratio in ratios(ways.chunked, ways.naive, min(repeats, 3))]
        report("T4", f"head, {length} tokens: our time over theirs", 1.0, times, at_most=True)


def prefixes(source: Path, repeats: int) -> None:
    """T5: eight completions of 64 tokens to one prompt of 256, shared against not."""
    prompt = example(256, 0).tokens.tolist()
    work = jobs([[example(320, index, prompt) for index in range(8)]])
    engine = engine_with(source, 1)

    def unshared() -> None:
        engine.share_prefixes = False
        engine.run_pass(work)
        engine.share_prefixes = True

    fewer = 8 * 320 / (256 + 8 * 64)
    gained = [ratio / fewer for ratio in ratios(lambda: engine.run_pass(work), unshared, repeats)]
    report("T5", f"prefix sharing: speed-up over the {fewer:.2f} times fewer tokens", 0.9, gained)


def exactness(source: Path) -> None:
    """T6: against plain PEFT, alone against batched, and a tenant of NaNs."""
    engine = engine_with(source, 8)
    for index in range(8):
        engine.run(f"r{index}").weights.flat.copy_(perturbed_adapter(engine.base, AdapterConfig(8, seed=index)).flat)
    work = jobs([[example(40 + index, index)] for index in range(8)])
    together = [outcome for outcome in engine.run_pass(work) if isinstance(outcome, Outcome)]
    gradients = [engine.run(item.training_run_id).gradient.clone() for item in work]
    logprob_gaps, gradient_gaps = [], []
    for item, outcome, gradient in zip(work, together, gradients, strict=True):
        state = engine.run(item.training_run_id)
        state.gradient.zero_()
        alone = engine.run_alone(item)
        logprob_gaps.append(float((alone.logprobs[0] - outcome.logprobs[0]).abs().max()))
        gradient_gaps.append(float((state.gradient - gradient).norm() / gradient.norm()))
    report("T6", "alone against batched: logprobs", 2e-6, logprob_gaps, at_most=True)
    report("T6", "alone against batched: gradient, relative", 2e-6, gradient_gaps, at_most=True)
    state, (own,) = engine.run("r0"), work[0].examples
    plain = PlainPeft(source, CONFIG, state.weights)
    logprobs = plain.logprobs(own.tokens.tolist(), own.targets[:, 0])
    (-logprobs.sum()).backward()
    theirs = torch.cat([m.grad.reshape(-1) for name in state.weights.linears for m in plain.matrices(name)])
    report(
        "T6",
        "plain PEFT: logprobs",
        1e-5,
        [float((logprobs.detach() - together[0].logprobs[0]).abs().max())],
        at_most=True,
    )
    report("T6", "plain PEFT: gradient", 1e-5, [float((theirs - gradients[0]).norm() / theirs.norm())], at_most=True)
    for item in work:
        engine.run(item.training_run_id).gradient.zero_()
    engine.run("r3").weights.flat.fill_(torch.nan)
    engine.run_pass(work)
    same = [torch.equal(engine.run(f"r{i}").gradient, gradients[i]) for i in range(8) if i != 3]
    report("T6", "batch mates of a NaN tenant: share bitwise unchanged", 1.0, [sum(same) / len(same)])


def new_shapes(source: Path) -> None:
    """The first call of a new length against the second."""
    engine = engine_with(source, 1)
    engine.run_pass(jobs([[example(100, 0)]]))
    first_over_second = []
    for length in (37, 61, 83, 119):
        work = jobs([[example(length, index)] for index in range(2)][:1])
        first_over_second.append(seconds(lambda: engine.run_pass(work)) / seconds(lambda: engine.run_pass(work)))  # noqa: B023
    report("shapes", "first call of a new length over the second", 1.3, first_over_second, at_most=True)


def whole_platform(source: Path, scratch: Path, rounds: int, repeats: int) -> None:
    """T7: wall-clock time of client, gateway, queue and trainer against a plain PEFT loop, and what they add."""
    examples = [example(256, index) for index in range(8)]
    naive = NaivePeft(source, CONFIG, 1)
    tokens, targets = [e.tokens.tolist() for e in examples], [e.targets[:, 0].tolist() for e in examples]
    data = [
        types.Datum(types.ModelInput.from_ints(own), {"target_tokens": wanted})
        for own, wanted in zip(tokens, targets, strict=True)
    ]
    adam = types.AdamParams(learning_rate=1e-4)

    def wall(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def loop() -> None:
        naive.forward_backward(0, tokens, targets)
        naive.optim_step(0)

    bare = BareEngine(source, scratch / "bare")
    with (
        platform(source, scratch / "data") as address,
        tinker.ServiceClient(base_url=f"grpc://{address}", api_key=KEY) as client,
    ):
        run = client.create_lora_training_client(BASE_MODEL, rank=8, seed=0)

        def through() -> None:
            forward_backward, step = run.forward_backward(data, "cross_entropy"), run.optim_step(adam)
            forward_backward.result(), step.result()

        through(), loop()
        speed = [wall(loop) / wall(through) for _ in range(repeats)]
        report("T7", "whole platform against a raw PEFT loop, 8 x 256 tokens", 0.9, speed)
        added = [
            p50_ms(lambda: run.forward_backward([datum()], "cross_entropy").result(), rounds)
            - p50_ms(bare.forward_backward, rounds)
            for _ in range(3)
        ]
        report("T7", "added to one small forward_backward, ms (p50)", 10, added, at_most=True)


def sections(quick: bool, scratch: Path) -> Iterator[Callable[[], None]]:
    """What is measured, in order."""
    source = qwen(scratch / "model")
    repeats = 3 if quick else 9
    yield lambda: many_tenants(source, repeats)
    yield lambda: packing(source, 1 if quick else 5)
    yield lambda: head(scratch / "head", (1024,) if quick else (1024, 4096), repeats)
    yield lambda: prefixes(source, repeats)
    yield lambda: exactness(source)
    yield lambda: new_shapes(source)
    yield lambda: whole_platform(source, scratch, 30 if quick else 100, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, and the short head only")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        for section in sections(quick, Path(scratch)):
            section()
            gc.collect()
    console.print(table)


if __name__ == "__main__":
    main()
