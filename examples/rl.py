"""Reinforcement learning: teach a base model to write in sentences of five words.

    export TINKER_GRPC_URL=grpc://127.0.0.1:50051 TINKER_API_KEY=tml-...
    python examples/rl.py

Each iteration samples groups of texts from the current weights, scores every text with a function, and makes what was
better than the rest of its group likelier (REINFORCE with a group baseline, corrected by importance sampling).
"""

import argparse
import asyncio
import re
from dataclasses import dataclass
from statistics import fmean

from transformers import PreTrainedTokenizerBase

import tinker_client as tinker
from tinker_client import types

PROMPTS = ("Anna", "Ben", "Tom", "Rosa", "The cat", "The old man", "One day", "In the morning")
WANTED_WORDS = 5


def reward(text: str) -> float:
    """How near the sentences of a text are to the wanted length, from 0 to 1; 0 if none is finished."""
    lengths = [len(sentence.split()) for sentence in re.findall(r"[^.!?]+[.!?]", text)]
    return fmean(max(0.0, 1 - abs(length - WANTED_WORDS) / WANTED_WORDS) for length in lengths or [0])


@dataclass(frozen=True)
class Group:
    """What was sampled from one prompt: training data, its mean reward, and one of the texts."""

    data: list[types.Datum]
    mean_reward: float
    text: str


async def main() -> None:
    arguments = parse_arguments()
    async with tinker.ServiceClient() as service:
        capabilities = await service.get_server_capabilities_async()
        base_model = arguments.base_model or capabilities.supported_models[0].model_name
        training = await service.create_lora_training_client_async(base_model, rank=arguments.rank, seed=0)
        tokenizer = await training.get_tokenizer_async()

        for iteration in range(1, arguments.iterations + 1):
            sampling = await training.save_weights_and_get_sampling_client_async(f"iteration-{iteration}")
            groups = await asyncio.gather(
                *(sample_group(sampling, tokenizer, prompt, arguments.group_size) for prompt in PROMPTS)
            )
            mean_reward = fmean(group.mean_reward for group in groups)
            print(f"iteration {iteration:>2}   reward {mean_reward:.3f}   {groups[0].text}", flush=True)

            # Both are under way before either is waited for.
            data = [datum for group in groups for datum in group.data]
            forward_backward = training.forward_backward(data, "importance_sampling")
            optim_step = training.optim_step(types.AdamParams(learning_rate=arguments.learning_rate))
            await forward_backward
            await optim_step


async def sample_group(
    sampling: tinker.SamplingClient, tokenizer: PreTrainedTokenizerBase, prompt: str, size: int
) -> Group:
    """Samples several continuations of one prompt and compares them with each other."""
    tokens = tokenizer.encode(prompt)
    params = types.SamplingParams(max_tokens=40)
    response = await sampling.sample(types.ModelInput.from_ints(tokens), size, params)
    texts = [tokenizer.decode(tokens + sequence.tokens, skip_special_tokens=True) for sequence in response.sequences]
    rewards = [reward(text) for text in texts]
    mean_reward = fmean(rewards)
    advantages = [value - mean_reward for value in rewards]
    data = [make_datum(tokens, *pair) for pair in zip(response.sequences, advantages, strict=True)]
    return Group(data, mean_reward, texts[0])


def make_datum(prompt: list[int], sequence: types.SampledSequence, advantage: float) -> types.Datum:
    """The sampled tokens are the targets, with the logprobs they were sampled at; those of the prompt count nothing."""
    tokens = prompt + sequence.tokens
    padding = [0.0] * (len(prompt) - 1)
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tokens[1:],
            "logprobs": padding + sequence.logprobs,
            "advantages": padding + [advantage] * len(sequence.tokens),
        },
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Teach a base model to write in sentences of five words.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--base-model", help="default: the first that the platform serves")
    parser.add_argument("--iterations", type=int, default=15)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=5e-3, help="for a real model try a hundredth of this")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main())
