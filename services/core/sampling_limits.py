"""Limits of a sampling request, which the gateway checks and a sampler relies on."""

from __future__ import annotations

MAX_SAMPLES = 1024
MAX_TOPK_LOGPROBS = 100
