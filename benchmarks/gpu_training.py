"""forward_backward on a GPU: one run and many in a pass, against plain PEFT."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from peft import get_peft_model

from benchmarks.gpu_model import CUDA, VOCAB, Report, big_base, seconds, weights_of
from services.core.losses import LOSSES
from services.model.adapter_config import AdapterConfig
from services.model.adapters import peft_config
from services.model.base import BaseModel
from services.trainer.engine.local import LocalTrainerEngine
from services.trainer.values import AdamParams, Example, PassJob

RANK = 8
LOSS = LOSSES["cross_entropy"]
ADAM = AdamParams(learning_rate=1e-4, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.0, grad_clip_norm=0.0)
CASES = ((1, 8, 1024), (8, 1, 1024), (16, 1, 512), (16, 1, 64), (1, 1, 64))
"""Runs, examples of each, tokens of each example."""


def training(report: Report, base: BaseModel, scratch: Path) -> None:
    """All cases; the opponent last, because it takes a base model of its own."""
    best = 4 * weights_of(base) / report.ceilings.flops
    ours(report, base, best)
    del base
    torch.cuda.empty_cache()
    tokens = 8 * 1024
    report.add("plain PEFT, 8 batches of 1 x 1024 tokens", tokens, plain_peft(big_base(scratch)), best * tokens)


def ours(report: Report, base: BaseModel, best: float) -> None:
    """`best` seconds a token."""
    engine = LocalTrainerEngine(base)
    for index in range(max(runs for runs, _, _ in CASES)):
        engine.create_run(f"r{index}", AdapterConfig(RANK, seed=index))
    for runs, examples, length in CASES:
        work = [
            PassJob(f"r{run}", [example(length, run * examples + index) for index in range(examples)], LOSS, {}, True)
            for run in range(runs)
        ]
        tokens = runs * examples * length
        what = f"forward_backward, {runs} runs x {examples} x {length} tokens"
        report.add(what, tokens, seconds(partial(engine.run_pass, work)), best * tokens)
    prompt = example(768, 0).tokens.tolist()
    group = [PassJob("r0", [example(1024, index, prompt) for index in range(8)], LOSS, {}, True)]
    what = "forward_backward, 8 completions of 256 to a prompt of 768"
    report.add(what, 8 * 1024, seconds(partial(engine.run_pass, group)), best * (768 + 8 * 256))
    step = seconds(partial(engine.optim_step, "r0", ADAM), 9)
    report.add("optim_step of one run", 0, step, 2 * engine.run("r0").buffer.nbytes / report.ceilings.bytes_per_second)


def example(length: int, seed: int, prefix: Sequence[int] = ()) -> Example:
    draw = random.Random(seed)
    tokens = [*prefix, *(draw.randrange(3, VOCAB) for _ in range(length - len(prefix)))]
    targets = np.array([*tokens[1:], 4])[:, None]
    return Example(np.array(tokens), targets, {"weights": np.ones((length, 1), np.float32)}, (length,))


def plain_peft(base: BaseModel) -> float:
    """Seconds of forward and backward as one writes it: a batch at a time, all logits at once."""
    config = peft_config(AdapterConfig(RANK, seed=0), "base", base.family)
    config.inference_mode = False
    model = get_peft_model(base.module, config)
    tokens = torch.randint(3, VOCAB, (8, 1, 1024), device=CUDA)

    def step() -> None:
        for batch in tokens:
            logits = model(input_ids=batch, use_cache=False).logits
            F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="sum").backward()

    return seconds(step)
