"""Supervised fine-tuning: teach a base model to write like a lighthouse keeper.

    export TINKER_GRPC_URL=grpc://127.0.0.1:50051 TINKER_API_KEY=tml-...
    python examples/sft.py

Samples before, trains a LoRA adapter on `data/logbook.txt`, saves a checkpoint, and samples again.
"""

import argparse
import random
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap

from transformers import PreTrainedTokenizerBase

import tinker_client as tinker
from tinker_client import types

LOGBOOK = Path(__file__).resolve().parent / "data" / "logbook.txt"
PROMPTS = ("Day 61. Wind", "Day 62. Wind south,", "Day 63. Wind west, force 9. Sea")


def main() -> None:
    arguments = parse_arguments()
    with tinker.ServiceClient() as service:
        base_model = arguments.base_model or service.get_server_capabilities().supported_models[0].model_name
        training = service.create_lora_training_client(base_model, rank=arguments.rank, seed=0)
        tokenizer = training.get_tokenizer()
        data = [make_datum(text, tokenizer) for text in LOGBOOK.read_text().split("\n\n")]
        print(f"Fine-tuning {base_model} on {len(data)} days of a logbook")

        before = sample(service.create_sampling_client(base_model=base_model), tokenizer)
        train(training, data, arguments)
        checkpoint = training.save_state(arguments.save_name).result()
        print(f"\nsaved {checkpoint.path}")
        after = sample(training.save_weights_and_get_sampling_client(arguments.save_name), tokenizer)

    print_side_by_side("BEFORE", "AFTER")
    for texts in zip(before, after, strict=True):
        print_side_by_side(*texts)


def make_datum(text: str, tokenizer: PreTrainedTokenizerBase) -> types.Datum:
    """Every token but the first is a target, predicted from the tokens before it."""
    tokens = [*tokenizer.encode(text.strip()), tokenizer.eos_token_id]
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)},
    )


def train(training: tinker.TrainingClient, data: list[types.Datum], arguments: argparse.Namespace) -> None:
    shuffle = random.Random(0)
    for step in range(1, arguments.steps + 1):
        batch = shuffle.sample(data, arguments.batch_size)
        learning_rate = arguments.learning_rate * (1 - (step - 1) / arguments.steps)

        # Both are under way before either is waited for.
        forward_backward = training.forward_backward(batch, "cross_entropy")
        optim_step = training.optim_step(types.AdamParams(learning_rate=learning_rate))

        loss = forward_backward.result().metrics["loss:sum"]  # a sum over tokens, in nats
        optim_step.result()
        tokens = sum(datum.model_input.length() for datum in batch)
        if step == 1 or step % 5 == 0:
            print(f"step {step:>3}/{arguments.steps}   loss per token {loss / tokens:6.3f}", flush=True)


def sample(client: tinker.SamplingClient, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """One continuation of each prompt; all of them are under way at once."""
    params = types.SamplingParams(max_tokens=60, temperature=0.5, seed=0)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    futures = [client.sample(types.ModelInput.from_ints(prompt), 1, params) for prompt in prompts]
    return [
        tokenizer.decode(prompt + future.result().sequences[0].tokens, skip_special_tokens=True)
        for prompt, future in zip(prompts, futures, strict=True)
    ]


def print_side_by_side(left: str, right: str, width: int = 48) -> None:
    print()
    for lines in zip_longest(wrap(left, width), wrap(right, width), fillvalue=""):
        print(f"{lines[0]:<{width}}   {lines[1]}".rstrip())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Fine-tune a base model on a logbook.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--base-model", help="default: the first that the platform serves")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument(
        "--learning-rate", type=float, default=8e-3, help="falls to zero; for a real model try a hundredth of this"
    )
    parser.add_argument("--save-name", default="logbook")
    return parser.parse_args()


if __name__ == "__main__":
    main()
