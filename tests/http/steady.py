"""A user's program that trains and samples in a pipeline: python steady.py <base model> <steps>.

Prints a line when it begins, and at the end the losses and the samples that it got.
"""

from __future__ import annotations

import json
import sys
import warnings

warnings.simplefilter("ignore")
import tinker  # noqa: E402
from tinker import types  # noqa: E402

DATA = [
    types.Datum(
        model_input=types.ModelInput.from_ints([5, 6, 7, 8, 9, 10 + i]),
        loss_fn_inputs={"target_tokens": [6, 7, 8, 9, 10 + i, 11], "weights": [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]},
    )
    for i in range(3)
]
PROMPT = types.ModelInput.from_ints([5, 6, 7])

service = tinker.ServiceClient()
training = service.create_lora_training_client(sys.argv[1], rank=4, seed=9).result()
sampler = service.create_sampling_client(base_model=sys.argv[1]).result()
losses, samples = [], []
for step in range(int(sys.argv[2])):
    done = training.forward_backward(DATA, "cross_entropy")
    stepped = training.optim_step(types.AdamParams(learning_rate=1e-2))
    params = types.SamplingParams(max_tokens=8, seed=step, stop=[])
    sampled = sampler.sample(PROMPT, 4, params)
    if step == 2:
        print(json.dumps("under way"), flush=True)
    losses.append(done.result().metrics["loss:sum"])
    stepped.result()
    samples.append([sequence.tokens for sequence in sampled.result().sequences])
print(json.dumps([losses, samples]), flush=True)
