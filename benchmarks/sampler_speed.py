"""S1 to S4: tokens per CPU second against Hugging Face, in rounds that interleave everybody, the best of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from benchmarks.sampler_parts import (
    ADAPTERS,
    NEW_TOKENS,
    PROMPT_TOKENS,
    REQUESTS,
    TOKENS,
    Row,
    Sampler,
    best,
    console,
    cpu_seconds,
)
from testing.rows import random_tokens

ONE_BY_ONE = 6
"""How many requests stand for all, where they are generated one by one."""


def speed_rows(model: Path, sampler: Sampler, adapters: Sequence[Path], rounds: int) -> list[Row]:
    prompts = random_tokens(sampler.base, [PROMPT_TOKENS] * REQUESTS, seed=1)
    for location in (None, *adapters):
        sampler.serve(prompts, [location])  # reads the adapters, and warms up
    module, adapted = (AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval() for _ in range(2))
    peft = PeftModel.from_pretrained(adapted, str(adapters[0]))
    seconds = interleaved(
        {
            "base": lambda: sampler.serve(prompts, [None]),
            "1 adapter": lambda: sampler.serve(prompts, adapters[:1]),
            f"{ADAPTERS} adapters": lambda: sampler.serve(prompts, adapters),
            "alone": lambda: [sampler.serve([prompt], [None]) for prompt in prompts[:ONE_BY_ONE]],
            "generate": lambda: [generate(module, [prompt]) for prompt in prompts[:ONE_BY_ONE]],
            "generate, one static batch": lambda: generate(module, prompts),
            "PEFT": lambda: [generate(peft, [prompt]) for prompt in prompts[:ONE_BY_ONE]],
        },
        rounds,
    )
    for name in ("alone", "generate", "PEFT"):
        seconds[name] *= REQUESTS / ONE_BY_ONE
    batching = continuous_batching(model, prompts)
    if batching is not None:
        seconds["continuous batching"] = batching
    speeds = ", ".join(f"{name} {TOKENS / time:.0f}" for name, time in seconds.items())
    console.print(f"tokens per CPU second: {speeds}")

    def ratio(slow: str, fast: str) -> str:
        return f"{seconds[slow] / seconds[fast]:.2f}x"

    def slower(slow: str, fast: str) -> str:
        return f"{(seconds[slow] / seconds[fast] - 1) * 100:.0f} %"

    (long,) = random_tokens(sampler.base, [4 * PROMPT_TOKENS], seed=2)
    short_group, long_group = (shared_prefill(sampler, prompt, rounds) for prompt in (prompts[0], long))
    return [
        ("S1", "base model against generate, one by one", ">= 6x", ratio("generate", "base")),
        ("S1", "8 adapters mixed against generate, one by one", ">= 5x", ratio("generate", "8 adapters")),
        ("S1", "8 adapters mixed against PEFT, one by one", ">= 6x", ratio("PEFT", "8 adapters")),
        ("", "base model against generate as one static batch", "-", ratio("generate, one static batch", "base")),
        *(
            [("", "base model against transformers' continuous batching", "-", ratio("continuous batching", "base"))]
            if batching is not None
            else []
        ),
        ("S2", "8 adapters against 1", "<= 30 % slower", slower("8 adapters", "1 adapter")),
        ("S2", "1 adapter against none", "<= 20 % slower", slower("1 adapter", "base")),
        ("S3", "one request alone against generate", ">= 0.8x", ratio("generate", "alone")),
        ("S4", "num_samples = 8 against 8 requests", ">= 1.2x", f"{short_group:.2f}x"),
        ("", "the same with a prompt of 256", "-", f"{long_group:.2f}x"),
    ]


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The least CPU seconds of each, after one round that does not count."""
    for call in calls.values():
        call()
    measured = [{name: cpu_seconds(call) for name, call in calls.items()} for _ in range(rounds)]
    return {name: min(one[name] for one in measured) for name in calls}


def generate(module: torch.nn.Module, prompts: Sequence[Sequence[int]]) -> None:
    """Hugging Face, all prompts as one static batch."""
    ids = torch.tensor([list(prompt) for prompt in prompts], device=next(module.parameters()).device)
    module.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        eos_token_id=None,
    )


def continuous_batching(model: Path, prompts: Sequence[Sequence[int]]) -> float | None:
    """transformers' own continuous batching; None where it does not run on this machine."""
    module = AutoModelForCausalLM.from_pretrained(model, attn_implementation="sdpa").eval()
    config = GenerationConfig(
        max_new_tokens=NEW_TOKENS, do_sample=True, eos_token_id=-1, pad_token_id=0, use_cuda_graph=False
    )
    try:
        return cpu_seconds(
            lambda: module.generate_batch(
                [list(prompt) for prompt in prompts],
                generation_config=config,
                continuous_batching_config=ContinuousBatchingConfig(num_blocks=512, max_batch_tokens=512),
                progress_bar=False,
            )
        )
    except Exception as error:
        console.print(f"transformers' continuous batching does not run here: {type(error).__name__}: {error}"[:300])
        return None


def shared_prefill(sampler: Sampler, prompt: Sequence[int], rounds: int) -> float:
    """How much longer eight requests take than one for eight samples."""
    group = sampler.request(prompt, num_samples=8)
    shared = best(lambda: sampler.run([group]), rounds)
    separate = best(lambda: sampler.run([sampler.request(prompt, seed=i) for i in range(8)]), rounds)
    return separate / shared
