"""Training data as a client sends it, and jobs made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from services.core.losses import LOSSES
from services.trainer.convert import read_example
from services.trainer.values import AdamParams, PassJob
from testing.tiny_models import VOCAB_SIZE
from tinker_proto.tensor import from_array
from tinker_proto.v1 import data_pb2

ADAM = AdamParams(learning_rate=1e-2, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, grad_clip_norm=0.0)


def datum(tokens: Sequence[int], targets: Any, **inputs: Any) -> data_pb2.Datum:
    """A datum; numbers become float32 tensors."""
    arrays = {name: np.asarray(values, np.float32) for name, values in inputs.items()}
    arrays["target_tokens"] = np.asarray(targets, np.int64)
    return data_pb2.Datum(
        model_input=data_pb2.ModelInput(
            chunks=[data_pb2.Chunk(encoded_text=data_pb2.EncodedTextChunk(tokens=list(tokens)))]
        ),
        loss_fn_inputs={name: from_array(array) for name, array in arrays.items()},
    )


def random_data(loss: str, lengths: Sequence[int], *, seed: int = 0, k: int | None = None) -> list[data_pb2.Datum]:
    """Data of the given lengths for a loss; k targets a position, or one without a second dimension.

    Some positions are masked, and weights and advantages have either sign.
    """
    random = np.random.default_rng(seed)
    data = []
    for length in lengths:
        shape = (length,) if k is None else (length, k)
        inputs: dict[str, Any] = {"mask": random.integers(0, 2, size=shape)}
        if loss == "cross_entropy":
            inputs["weights"] = random.normal(size=shape)
        else:
            inputs |= {"logprobs": -random.uniform(1, 6, size=shape), "advantages": random.normal(size=shape)}
        if loss == "gspo":
            inputs["sequence_ratio_mask"] = random.integers(0, 2, size=shape)
        tokens = random.integers(3, VOCAB_SIZE, length).tolist()
        data.append(datum(tokens, random.integers(3, VOCAB_SIZE, shape), **inputs))
    return data


def group(loss: str, prompt: int, completions: tuple[int, ...], *, seed: int = 0) -> list[data_pb2.Datum]:
    """Samples of one prompt as a client sends them: shifted, and trained on the completion alone."""
    data = []
    (shared,) = random_data(loss, (prompt,), seed=seed)
    start = list(shared.model_input.chunks[0].encoded_text.tokens)
    for index, length in enumerate(completions):
        (item,) = random_data(loss, (prompt + length,), seed=100 * seed + index + 1)
        tokens = start + list(item.model_input.chunks[0].encoded_text.tokens)[:length] + [7]
        arrays = read_example(item, LOSSES[loss]).inputs
        trained = [0.0] * (prompt - 1) + [1.0] * (length + 1)
        inputs = {name: values[:, 0].tolist() for name, values in arrays.items() if name != "mask"}
        data.append(datum(tokens[:-1], tokens[1:], **inputs, mask=trained))
    return data


def work(run: str, data: Sequence[data_pb2.Datum], loss: str = "cross_entropy", *, backward: bool = True) -> PassJob:
    """A job over the data."""
    spec = LOSSES[loss]
    return PassJob(run, [read_example(item, spec) for item in data], spec, spec.options({}), backward)


def torch_adamw(parameters: Sequence[torch.Tensor], params: AdamParams) -> torch.optim.AdamW:
    """The reference optimizer."""
    return torch.optim.AdamW(
        parameters,
        lr=params.learning_rate,
        betas=(params.beta1, params.beta2),
        eps=params.eps,
        weight_decay=params.weight_decay,
    )
