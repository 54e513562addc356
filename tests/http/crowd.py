"""A user's program with many samples in flight at once: python crowd.py <base model> <count>.

Prints a line when it begins, and at the end the tokens that it got, in the order in which it asked.
"""

from __future__ import annotations

import json
import sys
import warnings

warnings.simplefilter("ignore")
import tinker  # noqa: E402
from tinker import types  # noqa: E402

PROMPT = types.ModelInput.from_ints([5, 6, 7])

service = tinker.ServiceClient()
sampler = service.create_sampling_client(base_model=sys.argv[1]).result()
print(json.dumps("under way"), flush=True)
futures = [
    sampler.sample(PROMPT, 1, types.SamplingParams(max_tokens=2, seed=number % 10, stop=[]))
    for number in range(int(sys.argv[2]))
]
print(json.dumps([future.result().sequences[0].tokens for future in futures]), flush=True)
