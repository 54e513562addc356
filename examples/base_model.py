"""Make a small base model, in Hugging Face format, from nothing but the texts in `data/`.

    python examples/base_model.py tiny-stories

The directory holds what any published model's does: config, safetensors weights, a byte-level BPE tokenizer. The
architecture is a real one (Qwen3 or Llama), only the numbers are small. The default is trained on `data/stories.txt`
for about three quarters of a minute on one core, and knows it nearly by heart: a text this short teaches words and
sentences, not stories of its own. `--steps 0` leaves the weights random and takes a second. The same arguments on the
same machine give the same files.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging

Architecture = Literal["qwen3", "llama"]
Progress = Callable[[int, float], None]
"""Called as progress(step, loss)."""

DATA = Path(__file__).resolve().parent / "data"
END_OF_TEXT = "<|endoftext|>"

HIDDEN_SIZE = 64
LAYERS = 2
VOCAB_SIZE = 2048

STEPS = 1600
BATCH_SIZE = 16
BLOCK_LENGTH = 48
LEARNING_RATE = 1e-2
WARMUP_STEPS = 50


def make_base_model(
    directory: Path,
    *,
    architecture: Architecture = "qwen3",
    hidden_size: int = HIDDEN_SIZE,
    layers: int = LAYERS,
    heads: int = 4,
    kv_heads: int = 2,
    mlp_size: int = 192,
    vocab_size: int = VOCAB_SIZE,
    context_length: int = 512,
    tie_embeddings: bool = True,
    steps: int = STEPS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Makes a base model and returns its directory, which appears whole or not at all.

    Args:
        directory: new, or empty.
        vocab_size: at most; a short text runs out of pairs to merge before a large vocabulary is full.
        steps: of pretraining on the stories; 0 leaves the weights random.
        progress: told the loss, in nats per token, after every step.

    Raises:
        FileExistsError: there is something in the directory.
        ValueError: the sizes do not fit together.
    """
    if directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty")
    if architecture not in get_args(Architecture):
        raise ValueError(f"architecture must be one of {', '.join(get_args(Architecture))}, not {architecture!r}")
    if hidden_size % (2 * heads) or heads % kv_heads:
        raise ValueError("hidden_size must be an even multiple of heads, and heads a multiple of kv_heads")

    stories = read_texts(DATA / "stories.txt")
    tokenizer = train_tokenizer([*stories, *read_texts(DATA / "logbook.txt")], vocab_size, context_length)
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=mlp_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden_size // heads,
        max_position_embeddings=context_length,
        tie_word_embeddings=tie_embeddings,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        if steps:
            pretrain(model, token_stream(tokenizer, stories), steps, progress)

    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".new-", ignore_cleanup_errors=True) as temporary:
        whole = Path(temporary) / "model"
        model.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        whole.rename(directory)
    return directory


def read_texts(path: Path) -> list[str]:
    """The texts of a file: one a line, blank lines between them."""
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line]


def train_tokenizer(texts: list[str], vocab_size: int, context_length: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer: any text round-trips, the commonest words of `texts` are one token each."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size <= len(alphabet):
        raise ValueError(f"vocab_size must be above {len(alphabet)}: every byte and {END_OF_TEXT} need a token")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT, model_max_length=context_length
    )


def token_stream(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> torch.Tensor:
    """All texts in one row of tokens, an end-of-text token before each."""
    return torch.tensor([token for text in texts for token in tokenizer.encode(END_OF_TEXT + text)])


def pretrain(model: nn.Module, stream: torch.Tensor, steps: int, progress: Progress | None) -> None:
    """Next-token prediction on random blocks of the stream, read as a ring; AdamW, warm-up, then a cosine to zero."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    norms = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.95),
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps)),
    )
    block = torch.arange(BLOCK_LENGTH + 1)
    model.train()
    for step in range(1, steps + 1):
        starts = torch.randint(len(stream), (BATCH_SIZE, 1))
        tokens_BT = stream[(starts + block) % len(stream)]
        logits_BTV = model(input_ids=tokens_BT[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step, loss.item())
    model.eval()


def progress_printer(steps: int) -> Progress:
    """Prints a line twenty times a run: steps, loss and the time that is left."""
    start, every = time.monotonic(), max(1, steps // 20)

    def print_progress(step: int, loss: float) -> None:
        if step % every == 0 or step == steps:
            left = (time.monotonic() - start) * (steps - step) / step
            print(f"step {step:>5}/{steps}   loss {loss:.2f}   {left:3.0f} s left", flush=True)

    return print_progress


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Make a small base model from the texts in examples/data.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("directory", type=Path, help="where the model goes; must not exist, or be empty")
    parser.add_argument("--architecture", choices=get_args(Architecture), default="qwen3")
    parser.add_argument("--hidden-size", type=int, default=HIDDEN_SIZE)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE, help="at most")
    parser.add_argument("--steps", type=int, default=STEPS, help="of pretraining; 0 leaves the weights random")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)  # the matrices are so small that more threads gain little, and stall on a busy machine
    try:
        make_base_model(**vars(arguments), progress=progress_printer(arguments.steps))
    except (FileExistsError, ValueError) as error:
        parser.error(str(error))
    print(f"The base model is ready. Next: tinker-platform up --base-model {arguments.directory}")


if __name__ == "__main__":
    main()
