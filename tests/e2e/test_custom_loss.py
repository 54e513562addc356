"""forward_backward_custom through real services: DPO, whose loss couples pairs of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

import tinker_client as tinker
from testing.platform import BASE_MODEL
from tinker_client import types

BETA = 0.5
PROMPT = [5, 6, 7]
CHOSEN, REJECTED = [8, 9, 10], [20, 21]


def datum(completion: Sequence[int]) -> types.Datum:
    tokens = [*PROMPT, *completion]
    return types.Datum(types.ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:]})


PAIR = [datum(CHOSEN), datum(REJECTED)]


def completion_sum(logprobs: torch.Tensor) -> torch.Tensor:
    return logprobs[len(PROMPT) - 1 :].sum()


def test_dpo_raises_the_margin_and_its_gradient_is_the_closed_form(service: tinker.ServiceClient) -> None:
    run = service.create_lora_training_client(BASE_MODEL, rank=4, seed=3)
    twin = service.create_lora_training_client(BASE_MODEL, rank=4, seed=3)
    first = run.forward(PAIR, "cross_entropy").result().loss_fn_outputs
    reference = [float(completion_sum(output["logprobs"].to_torch())) for output in first]
    margins: list[float] = []

    def dpo(_: Sequence[types.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, Mapping[str, float]]:
        chosen, rejected = (completion_sum(part) for part in logprobs)
        margin = BETA * ((chosen - reference[0]) - (rejected - reference[1]))
        margins.append(float(margin.detach()))
        return -F.logsigmoid(margin), {"margin:mean": margins[-1]}

    for _ in range(5):
        output = run.forward_backward_custom(PAIR, dpo).result()
        step = run.optim_step(types.AdamParams(learning_rate=1e-2)).result()
        # The closed form: dL/dlogprob of the completions is -/+ beta * sigmoid(-margin).
        slope = BETA / (1 + np.exp(output.metrics["margin:mean"]))
        weighted = [
            types.Datum(
                item.model_input,
                {
                    **item.loss_fn_inputs,
                    "weights": [0.0] * (len(PROMPT) - 1) + [sign * slope] * len(completion),
                },
            )
            for item, sign, completion in zip(PAIR, (1, -1), (CHOSEN, REJECTED), strict=True)
        ]
        twin.forward_backward(weighted, "cross_entropy").result()
        closed = twin.optim_step(types.AdamParams(learning_rate=1e-2)).result()
        assert abs(step.metrics["grad_norm:mean"] / closed.metrics["grad_norm:mean"] - 1) < 1e-5
    assert margins[0] == 0
    assert margins == sorted(margins)
    assert margins[-1] > 1
    for mine, theirs in zip(
        run.forward(PAIR, "cross_entropy").result().loss_fn_outputs,
        twin.forward(PAIR, "cross_entropy").result().loss_fn_outputs,
        strict=True,
    ):
        np.testing.assert_allclose(mine["logprobs"].to_numpy(), theirs["logprobs"].to_numpy(), atol=1e-4)
