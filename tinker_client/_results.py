"""Results of operations and capabilities: frozen values, nothing that acts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinker_client._inputs import LoraConfig
from tinker_client._readable import Readable
from tinker_client._tensor_data import TensorData

StopReason = Literal["stop", "length"]
TopkLogprobs = list[tuple[int, float]]
"""(token id, logprob) pairs at one position, likeliest first."""


@dataclass(frozen=True, repr=False)
class ForwardBackwardOutput(Readable):
    """Result of a pass over data.

    Attributes:
        loss_fn_outputs: one dict for each datum, in order; "logprobs" is float32 of target_tokens' shape, the
            log-probability of each target at temperature 1, in nats.
        metrics: numbers named `name:reduction` (sum, mean, min or max). "loss:sum", the sum over tokens and data, is
            always there; policy losses add "ratio:mean", "kl_k1:mean" and others (docs/numerics.md).
    """

    loss_fn_outputs: list[dict[str, TensorData]]
    metrics: dict[str, float]


@dataclass(frozen=True)
class OptimStepResponse:
    """Result of an optimizer step.

    Attributes:
        metrics: "grad_norm:mean" is the global norm of the gradient before clipping.
    """

    metrics: dict[str, float]


@dataclass(frozen=True)
class SaveWeightsResponse:
    """Result of `save_state`.

    Attributes:
        path: `tinker://<training_run_id>/weights/<name>`.
    """

    path: str


@dataclass(frozen=True)
class SaveWeightsForSamplerResponse:
    """Result of `save_weights_for_sampler`.

    Attributes:
        path: `tinker://<training_run_id>/sampler_weights/<name>`.
    """

    path: str


@dataclass(frozen=True)
class LoadWeightsResponse:
    """Result of loading a checkpoint.

    Attributes:
        path: the path that was loaded.
    """

    path: str


@dataclass(frozen=True, repr=False)
class SampledSequence(Readable):
    """One completion.

    Attributes:
        tokens: generated token ids, the stop token included.
        logprobs: log-probability (nats) of each token under softmax(logits / temperature), before top_k and top_p; at
            temperature 0 under softmax(logits).
        stop_reason: "stop" (a stop token, stop string or end of sequence) or "length" (max_tokens was reached).
        topk_logprobs: the likeliest tokens at each token's position, at temperature 1; None if not requested.
        raw_logprobs: log-probability of each token at temperature 1; None if not requested.
    """

    tokens: list[int]
    logprobs: list[float]
    stop_reason: StopReason
    topk_logprobs: list[TopkLogprobs] | None = None
    raw_logprobs: list[float] | None = None


@dataclass(frozen=True)
class SampledToken:
    """One token of a streamed completion.

    Attributes:
        sequence_index: which of the num_samples completions, from 0.
        token: token id.
        logprob: its log-probability, as in SampledSequence.logprobs.
        stop_reason: "stop" or "length" on the last token of its sequence; None on the others.
    """

    sequence_index: int
    token: int
    logprob: float
    stop_reason: StopReason | None = None


@dataclass(frozen=True)
class PromptAltTokens:
    """Tokens that were drawn in the place of prompt tokens.

    Attributes:
        tokens: int64 [prompt length - 1, k]; row i was drawn where prompt token i + 1 is predicted.
        logprobs: float32 of the same shape: log-probability (nats) of each, at temperature 1.
    """

    tokens: TensorData
    logprobs: TensorData


@dataclass(frozen=True, repr=False)
class SampleResponse(Readable):
    """Completions of a prompt, with the requested scores of the prompt at temperature 1.

    Attributes:
        sequences: num_samples completions.
        prompt_logprobs: log-probability of each prompt token; None where nothing was scored, as for the first token,
            which nothing predicts. The whole is None if not requested.
        topk_prompt_logprobs: the likeliest tokens at each prompt token's position; None as above.
        target_prompt_logprobs: float32 of the shape [prompt length, K] of the requested token ids; NaN in rows that
            were not scored. None if not requested.
        prompt_cache_hit_tokens: number of prompt tokens whose keys and values were cached already.
        prompt_alt_tokens: what was drawn in the place of prompt tokens; None if not requested.
    """

    sequences: list[SampledSequence]
    prompt_logprobs: list[float | None] | None = None
    topk_prompt_logprobs: list[TopkLogprobs | None] | None = None
    target_prompt_logprobs: TensorData | None = None
    prompt_cache_hit_tokens: int = 0
    prompt_alt_tokens: PromptAltTokens | None = None


@dataclass(frozen=True)
class SupportedModel:
    """A base model and its limits.

    Attributes:
        model_name: the name to give as `base_model`.
        max_context_length: most tokens of a sequence, prompt and generated tokens together.
        vocab_size: token ids are in [0, vocab_size).
        trainable: whether a trainer serves it now.
        sampleable: whether a sampler serves it now.
        max_lora_rank: largest rank of an adapter; 0 if it is not trainable.
        loss_fns: names of the loss functions that its trainers have, sorted.
    """

    model_name: str
    max_context_length: int
    vocab_size: int
    trainable: bool
    sampleable: bool
    max_lora_rank: int
    loss_fns: list[str]


@dataclass(frozen=True, repr=False)
class GetServerCapabilitiesResponse(Readable):
    """What the platform serves now.

    Attributes:
        supported_models: one entry for each base model, sorted by name.
    """

    supported_models: list[SupportedModel]


@dataclass(frozen=True)
class ModelData:
    """Base model of a training run.

    Attributes:
        model_name: name of the base model.
        tokenizer_id: name of its tokenizer, equal to model_name.
    """

    model_name: str
    tokenizer_id: str


@dataclass(frozen=True)
class GetInfoResponse:
    """What a training client trains.

    Attributes:
        model_id: id of the training run.
        model_name: name of the base model.
        model_data: the base model and its tokenizer.
        is_lora: True, because every run trains a LoRA adapter.
        lora_rank: rank of the adapter.
        lora_config: shape of the adapter.
    """

    model_id: str
    model_name: str
    model_data: ModelData
    is_lora: bool
    lora_rank: int
    lora_config: LoraConfig
