"""Limits of a sampling request, which the gateway checks and a sampler relies on."""

from __future__ import annotations

MAX_SAMPLES = 1024
MAX_TOPK_LOGPROBS = 100
MAX_ALT_TOKENS = 100
"""Tokens drawn in the place of one prompt token."""

NO_TARGET = -1
"""In the place of a token id of target_prompt_logprobs: nothing is asked for."""
