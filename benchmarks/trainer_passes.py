"""T1, T2, T3 and T5: what sharing a pass, packing and sharing prefixes are worth, in CPU time of one thread."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from naive_peft import NaivePeft
from trainer_load import ADAM, CONFIG, engine_with, example, jobs
from trainer_table import Targets, ratios, seconds

from services.trainer.values import PassJob


def many_tenants(targets: Targets, source: Path, repeats: int) -> None:
    """T1 and T2: a step of many runs, each one datum, against one after another and against plain PEFT."""
    for name, runs, length, wanted_own, wanted_naive in (
        ("T1", 8, 8, 2.0, 3.0),
        ("T1", 16, 8, 2.5, 5.0),
        ("T1", 8, 16, 2.0, 3.0),
        ("T2", 8, 512, 0.9, None),
    ):
        one_step(targets, source, name, runs, length, wanted_own, wanted_naive, repeats if length < 512 else 2)


def one_step(
    targets: Targets,
    source: Path,
    name: str,
    runs: int,
    length: int,
    wanted_own: float,
    wanted_naive: float | None,
    repeats: int,
) -> None:
    """forward_backward and optim_step of every run."""
    engine = engine_with(source, runs)
    work = jobs([[example(length, index)] for index in range(runs)])

    def step(batches: Sequence[Sequence[PassJob]]) -> None:
        for batch in batches:
            engine.run_pass(batch)
        for item in work:
            engine.optim_step(item.training_run_id, ADAM)

    what = f"{runs} runs x {length} tokens: one pass against"
    singly = [[item] for item in work]
    targets.report(name, f"{what} one by one", wanted_own, ratios(lambda: step([work]), lambda: step(singly), repeats))
    if wanted_naive is None:
        return
    naive = NaivePeft(source, CONFIG, runs)

    def naive_step() -> None:
        for index, item in enumerate(work):
            (own,) = item.examples
            naive.forward_backward(index, [own.tokens.tolist()], [own.targets[:, 0].tolist()])
            naive.optim_step(index)

    targets.report(name, f"{what} plain PEFT", wanted_naive, ratios(lambda: step([work]), naive_step, repeats))


def packing(targets: Targets, source: Path, repeats: int) -> None:
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

    targets.report("T3", "packed against padded", 1.4, ratios(lambda: engine.run_pass(jobs([examples])), pad, repeats))


def prefixes(targets: Targets, source: Path, repeats: int) -> None:
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
    targets.report("T5", f"prefix sharing: speed-up over the {fewer:.2f} times fewer tokens", 0.9, gained)


def new_shapes(targets: Targets, source: Path) -> None:
    """The first call of a new length against the second."""
    engine = engine_with(source, 1)
    engine.run_pass(jobs([[example(100, 0)]]))
    first_over_second = []
    for length in (37, 61, 83, 119):
        work = jobs([[example(length, index)] for index in range(2)][:1])
        first_over_second.append(seconds(lambda: engine.run_pass(work)) / seconds(lambda: engine.run_pass(work)))  # noqa: B023
    targets.report("shapes", "first call of a new length over the second", 1.3, first_over_second, at_most=True)
