"""The sampler against Hugging Face's generate, PEFT and continuous batching, all in one run on one CPU thread.

Everything but the hand-off is measured in CPU time of this process. 32 requests of 64 prompt tokens and 64 new tokens
on a small random Qwen3 model. Usage: python benchmarks/sampler.py [--quick]
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from rich.table import Table
from transformers import AutoModelForCausalLM

from benchmarks.sampler_handoff import handoff_table
from benchmarks.sampler_parts import ADAPTERS, Row, Sampler, best, console, cpu_seconds, save_model
from benchmarks.sampler_speed import speed_rows
from services.model.adapter_config import AdapterConfig
from services.model.adapter_files import read_adapter, write_adapter
from services.model.base import BaseModel
from testing.rows import perturbed_adapter, random_tokens


def cache_row(sampler: Sampler, adapters: Sequence[Path], rounds: int) -> Row:
    (prompt,) = random_tokens(sampler.base, [400], seed=8)
    request = sampler.request(prompt, adapters[0], seed=1, streamed=True)

    def first_token() -> float:
        def steps() -> None:
            sampler.engine.submit(request)
            while not sampler.engine.take_token_deltas():
                sampler.engine.step()

        seconds = cpu_seconds(steps)
        while not sampler.engine.idle:
            sampler.engine.step()
        sampler.engine.take_token_deltas()
        return seconds

    sampler.engine.forget_cached_prefixes()
    cold = first_token()
    warm = min(first_token() for _ in range(rounds))
    return "", "first token of 400 cached prompt tokens", "-", f"{cold * 1000:.1f} -> {warm * 1000:.1f} ms"


def version_row(sampler: Sampler, adapters: Sequence[Path], rounds: int) -> Row:
    """From files in the page cache to tensors that a step can use."""
    times = [cpu_seconds(lambda i=i: read_adapter(adapters[i % ADAPTERS], sampler.base)) for i in range(rounds * 8)]
    return "S5", "a new adapter version, from its files", "<= 5 ms", f"{statistics.median(times) * 1000:.1f} ms"


def latency_rows(sampler: Sampler) -> list[Row]:
    busy = [sampler.request(prompt, seed=i) for i, prompt in enumerate(random_tokens(sampler.base, [16] * 16, seed=4))]
    for request in busy:
        sampler.engine.submit(request)
    for _ in range(4):
        sampler.engine.step()
    late = sampler.request([5, 6, 7], streamed=True)
    sampler.engine.submit(late)
    steps = 1
    sampler.engine.step()
    while not sampler.engine.take_token_deltas():
        sampler.engine.step()
        steps += 1
    free = sampler.engine.free_sequences
    sampler.engine.cancel(late.name)
    freed = sampler.engine.free_sequences - free
    while not sampler.engine.idle:
        sampler.engine.step()
    return [
        ("S8", "steps to the first token beside 16 others", "1", str(steps)),
        ("S8", "slots free after a cancel, before the next step", "1", str(freed)),
    ]


def identity_rows(model: Path, sampler: Sampler, adapters: Sequence[Path]) -> list[Row]:
    prompts = random_tokens(sampler.base, range(20, 116, 6), seed=6)
    options = {"include_prompt_logprobs": True}
    requests = [sampler.request(p, (None, *adapters)[i % 9], seed=i, **options) for i, p in enumerate(prompts)]
    together = sampler.run(requests)
    same = sum(
        sampler.run([request])[0].sequences[0].tokens == result.sequences[0].tokens
        for request, result in zip(requests, together, strict=True)
    )
    exact = Sampler(model, deterministic=True)
    batch = exact.run(requests)
    equal = sum(repr(exact.run([request])[0]) == repr(result) for request, result in zip(requests, batch, strict=True))
    module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    plain = PeftModel.from_pretrained(module, str(adapters[0]))
    worst = 0.0
    for request, result in zip(requests, together, strict=True):
        if request.adapter == adapters[0] and result.prompt_logprobs is not None:
            tokens = [*request.prompt, *result.sequences[0].tokens]
            with torch.no_grad():
                rows = plain(input_ids=torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
            expected = rows.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
            ours = torch.tensor([*result.prompt_logprobs[1:], *result.sequences[0].logprobs])
            worst = max(worst, float((ours - expected).abs().max()))
    fast, slow = (best(lambda s=s: s.run(requests), 1) for s in (sampler, exact))
    return [
        ("S6", "logprobs against a plain PEFT forward, fp32", "<= 1e-4", f"{worst:.1e}"),
        ("S7", "same tokens alone and in a batch", "16 of 16", f"{same} of 16"),
        ("S7", "deterministic: same bits alone and in a batch", "16 of 16", f"{equal} of 16"),
        ("", "what the deterministic mode costs", "-", f"{slow / fast:.2f}x time"),
    ]


def write_adapters(base: BaseModel, directory: Path) -> list[Path]:
    paths = []
    for seed in range(ADAPTERS):
        weights = perturbed_adapter(base, AdapterConfig(rank=8, seed=seed))
        paths.append(directory / f"adapter-{seed}")
        paths[-1].mkdir()
        write_adapter(paths[-1], weights, base)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    quick = parser.parse_args().quick
    rounds = 1 if quick else 4
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    table = Table("", "CPU, float32, one thread", "target", "measured")
    with tempfile.TemporaryDirectory() as scratch:
        model = save_model(Path(scratch) / "model")
        sampler = Sampler(model)
        adapters = write_adapters(sampler.base, Path(scratch))
        rows = speed_rows(model, sampler, adapters, rounds)
        rows.append(cache_row(sampler, adapters, rounds))
        rows.append(version_row(sampler, adapters, rounds))
        rows += identity_rows(model, sampler, adapters)
        rows += latency_rows(sampler)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print(handoff_table(model, Path(scratch), 5 if quick else 20))


if __name__ == "__main__":
    main()
