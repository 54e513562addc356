"""Prometheus metrics. Every process has all of them and fills its own.

A gateway shows them on its HTTP port, a worker on TINKER_METRICS_PORT. The queue's gauges are filled when a
gateway is asked for them.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from services.core.config import WorkerSettings

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

CALLS = Counter(
    "tinker_calls", "Calls of the gRPC API that were answered, by method and reason of the error.", ["method", "reason"]
)
HTTP_REQUESTS = Counter("tinker_http_requests", "HTTP requests that were answered, by status.", ["status"])
IGNORED_FIELDS = Counter(
    "tinker_ignored_fields", "Unknown fields of JSON requests that were ignored because they were empty.", ["front"]
)

SAMPLES_WAITING = Gauge(
    "tinker_samples_waiting", "Sampling operations in the queue, those under way included.", ["base_model"]
)
NEXT_SAMPLE_SECONDS = Gauge(
    "tinker_next_sample_seconds", "How long the one that is next in turn has waited; 0 if none waits.", ["base_model"]
)
HEAD_SECONDS = Gauge(
    "tinker_head_seconds",
    "Age of the oldest operation at the head of a training run; 0 if there is none.",
    ["base_model"],
)
REQUESTS_WAITING = Gauge(
    "tinker_requests_waiting", "Operations of all tenants that are accepted and not finished.", ["kind"]
)
REQUEST_BYTES_WAITING = Gauge("tinker_request_bytes_waiting", "Bytes of their requests.")
SESSIONS_OPEN = Gauge("tinker_sessions_open", "Sessions that have not ended, those that fell silent lately included.")
RUNS_PLACED = Gauge("tinker_runs_placed", "Training runs that a trainer holds or that wait for one.", ["base_model"])
WORKERS = Gauge("tinker_workers", "Live workers.", ["base_model", "kind"])
SLOTS = Gauge("tinker_slots", "Runs or sequences that the live workers can hold.", ["base_model", "kind"])
SLOTS_USED = Gauge("tinker_slots_used", "How many of them are taken.", ["base_model", "kind"])

OPERATIONS = Counter(
    "tinker_operations", "Operations that a worker has carried out, by reason of the error.", ["method", "reason"]
)
PASS_SECONDS = Histogram(
    "tinker_pass_seconds", "Time of a trainer's pass or other operation.", ["method"], buckets=_SECONDS
)
PASS_JOBS = Histogram("tinker_pass_jobs", "Operations that shared a trainer's pass.", buckets=_COUNTS)
TRAINED_TOKENS = Counter("tinker_trained_tokens", "Tokens of forward and forward_backward operations.")
RECOMPUTED_TOKENS = Counter(
    "tinker_recomputed_tokens", "Tokens of a trainer's rows that were too long to keep their activations."
)
OUT_OF_MEMORY = Counter(
    "tinker_out_of_memory", "Passes of a trainer that ran out of memory and were carried out again."
)
PASS_MEMORY_BYTES = Gauge(
    "tinker_pass_memory_bytes",
    "Most memory that a trainer's pass takes since one ran out of memory; 0 while none has.",
)
SNAPSHOT_SECONDS = Histogram("tinker_snapshot_seconds", "Time to write a snapshot of a run.", buckets=_SECONDS)

STEP_SECONDS = Histogram("tinker_step_seconds", "Time of a sampler's step.", buckets=_SECONDS)
STEP_SEQUENCES = Histogram("tinker_step_sequences", "Sequences that ran in a sampler's step.", buckets=_COUNTS)
GENERATED_TOKENS = Counter("tinker_generated_tokens", "Tokens that were sampled.")
PROMPT_TOKENS = Counter("tinker_prompt_tokens", "Tokens of prompts.")
CACHED_PROMPT_TOKENS = Counter("tinker_cached_prompt_tokens", "Tokens of prompts that were in the cache.")


def serve_worker_metrics(settings: WorkerSettings) -> None:
    """Shows a worker's metrics, if a port is set."""
    if settings.metrics_port:
        start_http_server(settings.metrics_port, settings.host)
