"""The sampler against Hugging Face's generate, PEFT and continuous batching, all in one run on one CPU thread.

Everything is measured in CPU time of this process, so that a busy machine disturbs little. 32 requests of 64 prompt
tokens and 64 new tokens on a small random Qwen3 model. Usage: python benchmarks/sampler.py [--quick]
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, Qwen3Config

from benchmarks.sampler_handoff import handoff_table
from services.model.adapter_files import read_adapter, write_adapter
from services.model.adapters import AdapterConfig, AdapterWeights
from services.model.base import BaseModel, load_base_model
from services.sampler.engine import SamplerEngine
from services.sampler.request import GenerationRequest, GenerationResult, SamplingParams
from tests.model.rows import perturbed_adapter, random_tokens
from tests.model.tiny import save_tiny_model

REQUESTS, PROMPT_TOKENS, NEW_TOKENS, ADAPTERS = 32, 64, 64, 8
TOKENS = REQUESTS * NEW_TOKENS

console = Console()
Row = tuple[str, str, str, str]


def cpu_seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def best(call: Callable[[], object], rounds: int) -> float:
    return min(cpu_seconds(call) for _ in range(rounds))


def save_model(directory: Path) -> Path:
    save_tiny_model(directory, "qwen3")  # for its tokenizer
    config = Qwen3Config(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


class Sampler:
    """Our engine, and short ways to ask it."""

    def __init__(self, model: Path, *, deterministic: bool = False) -> None:
        self.base = load_base_model(str(model), name="bench", device="cpu")
        self.engine = SamplerEngine(
            self.base,
            max_sequences=32,
            max_tokens_per_step=512,
            max_cached_tokens=16_384,
            max_adapters=16,
            deterministic=deterministic,
        )
        self._asked = 0

    def request(
        self, prompt: Sequence[int], adapter: Path | None = None, num_samples: int = 1, seed: int = 0, **options: object
    ) -> GenerationRequest:
        self._asked += 1
        params = SamplingParams(NEW_TOKENS, seed=seed)
        return GenerationRequest(f"r{self._asked}", tuple(prompt), num_samples, params, adapter=adapter, **options)  # type: ignore[arg-type]

    def run(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
        """Nothing of it stays in the prefix cache."""
        for request in requests:
            self.engine.submit(request)
        outcomes = {}
        while not self.engine.idle:
            outcomes |= {finished.name: finished.outcome for finished in self.engine.step()}
        self.engine._placement.clear()
        results = [outcomes[request.name] for request in requests]
        assert all(isinstance(result, GenerationResult) for result in results), results
        return results  # type: ignore[return-value]

    def serve(self, prompts: Sequence[Sequence[int]], adapters: Sequence[Path | None]) -> list[GenerationResult]:
        """One request a prompt, adapters in turn."""
        return self.run([self.request(prompt, adapters[i % len(adapters)], seed=i) for i, prompt in enumerate(prompts)])


def generate(module: torch.nn.Module, prompts: Sequence[Sequence[int]]) -> None:
    """Hugging Face, all prompts as one static batch."""
    ids = torch.tensor([list(prompt) for prompt in prompts])
    module.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        eos_token_id=None,
    )


def one_by_one(module: torch.nn.Module, prompts: Sequence[Sequence[int]], count: int) -> float:
    """CPU seconds that all prompts take, from `count` of them."""
    generate(module, prompts[:1])
    return cpu_seconds(lambda: [generate(module, [prompt]) for prompt in prompts[:count]]) * len(prompts) / count


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


def speed_rows(
    model: Path, sampler: Sampler, adapters: Sequence[Path], weights: AdapterWeights, rounds: int, singles: int
) -> list[Row]:
    prompts = random_tokens(sampler.base, [PROMPT_TOKENS] * REQUESTS, seed=1)
    for location in (None, *adapters):
        sampler.serve(prompts, [location])  # reads the adapters, and warms up
    base = best(lambda: sampler.serve(prompts, [None]), rounds)
    one = best(lambda: sampler.serve(prompts, adapters[:1]), rounds)
    eight = best(lambda: sampler.serve(prompts, adapters), rounds)
    alone = best(lambda: sampler.serve(prompts[:1], [None]), rounds * 2)
    module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    hf = one_by_one(module, prompts, singles)
    hf_batch = cpu_seconds(lambda: generate(module, prompts))
    batching = continuous_batching(model, prompts)
    peft = PeftModel.from_pretrained(module, str(adapters[0]))
    hf_peft = one_by_one(peft, prompts, singles)

    def ratio(slow: float, fast: float) -> str:
        return f"{slow / fast:.2f}x"

    console.print(
        f"tokens per CPU second: ours {TOKENS / base:.0f} (base), {TOKENS / one:.0f} (1 adapter), {TOKENS / eight:.0f} "
        f"({ADAPTERS} adapters); generate {TOKENS / hf:.0f} one by one, {TOKENS / hf_batch:.0f} as one static batch; "
        f"with PEFT {TOKENS / hf_peft:.0f}" + (f"; continuous batching {TOKENS / batching:.0f}" if batching else "")
    )
    rows = [
        ("S1", "base model against generate, one by one", ">= 6x", ratio(hf, base)),
        ("S1", "8 adapters mixed against generate, one by one", ">= 5x", ratio(hf, eight)),
        ("S1", "8 adapters mixed against PEFT, one by one", ">= 6x", ratio(hf_peft, eight)),
        ("", "base model against generate as one static batch", "-", ratio(hf_batch, base)),
    ]
    if batching is not None:
        rows.append(("", "base model against transformers' continuous batching", "-", ratio(batching, base)))
    group = sampler.request(prompts[0], num_samples=8)
    shared = best(lambda: sampler.run([group]), rounds)
    separate = best(lambda: sampler.run([sampler.request(prompts[0], seed=i) for i in range(8)]), rounds)
    return [
        *rows,
        ("S2", "8 adapters against 1", "<= 30 % slower", f"{(eight / one - 1) * 100:.0f} %"),
        ("S2", "1 adapter against none", "<= 20 % slower", f"{(one / base - 1) * 100:.0f} %"),
        ("S3", "one request alone against generate", ">= 0.8x", ratio(hf / REQUESTS, alone)),
        ("S4", "num_samples = 8 against 8 requests", ">= 1.2x", ratio(separate, shared)),
    ]


def cache_row(sampler: Sampler, adapters: Sequence[Path], rounds: int) -> Row:
    (prompt,) = random_tokens(sampler.base, [400], seed=8)
    request = sampler.request(prompt, adapters[0], seed=1)

    def first_token() -> float:
        def steps() -> None:
            sampler.engine.submit(request)
            while not any(sequence.logprobs for sequence in sampler.engine._sequences()):
                sampler.engine.step()

        seconds = cpu_seconds(steps)
        while not sampler.engine.idle:
            sampler.engine.step()
        return seconds

    sampler.engine._placement.clear()
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
    while not sampler.engine.take_pieces():
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


def identity_rows(model: Path, sampler: Sampler, adapters: Sequence[Path], weights: AdapterWeights) -> list[Row]:
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


def write_adapters(base: BaseModel, directory: Path) -> tuple[list[Path], AdapterWeights]:
    paths = []
    for seed in range(ADAPTERS):
        weights = perturbed_adapter(base, AdapterConfig(rank=8, seed=seed))
        paths.append(directory / f"adapter-{seed}")
        paths[-1].mkdir()
        write_adapter(paths[-1], weights, base)
    return paths, weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    quick = parser.parse_args().quick
    rounds, singles = (1, 3) if quick else (3, REQUESTS)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    table = Table("", "CPU, float32, one thread", "target", "measured")
    with tempfile.TemporaryDirectory() as scratch:
        model = save_model(Path(scratch) / "model")
        sampler = Sampler(model)
        adapters, weights = write_adapters(sampler.base, Path(scratch))
        rows = speed_rows(model, sampler, adapters, weights, rounds, singles)
        rows.append(cache_row(sampler, adapters, rounds))
        rows.append(version_row(sampler, adapters, rounds))
        rows += identity_rows(model, sampler, adapters, weights)
        rows += latency_rows(sampler)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print(handoff_table(model, Path(scratch), 5 if quick else 20))


if __name__ == "__main__":
    main()
