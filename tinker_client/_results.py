"""What operations and capabilities return: frozen values, nothing that acts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinker_client._inputs import LoraConfig
from tinker_client._tensor_data import TensorData

StopReason = Literal["stop", "length"]
TopkLogprobs = list[tuple[int, float]]
"""(token id, logprob) pairs at one position, likeliest first."""


@dataclass(frozen=True)
class ForwardBackwardOutput:
    """A loss: for each datum its arrays by name, and metrics named `name:reduction`, "loss:sum" among them."""

    loss_fn_outputs: list[dict[str, TensorData]]
    metrics: dict[str, float]


@dataclass(frozen=True)
class OptimStepResponse:
    """What an optimizer step saw: "grad_norm:mean" is the gradient's norm before clipping."""

    metrics: dict[str, float]


@dataclass(frozen=True)
class SaveWeightsResponse:
    """The path of a checkpoint for training."""

    path: str


@dataclass(frozen=True)
class SaveWeightsForSamplerResponse:
    """The path of a checkpoint for sampling."""

    path: str


@dataclass(frozen=True)
class LoadWeightsResponse:
    """The path that was loaded."""

    path: str


@dataclass(frozen=True)
class SampledSequence:
    """One completion: tokens with the stop token, and the logprob of each."""

    tokens: list[int]
    logprobs: list[float]
    stop_reason: StopReason
    topk_logprobs: list[TopkLogprobs] | None = None
    """The likeliest tokens at each token's position, if asked for."""

    raw_logprobs: list[float] | None = None
    """Each token's logprob at temperature 1, if asked for."""


@dataclass(frozen=True)
class SampledToken:
    """One token of a streamed completion; `stop_reason` is set on the last one of its sequence."""

    sequence_index: int
    token: int
    logprob: float
    stop_reason: StopReason | None = None


@dataclass(frozen=True)
class SampleResponse:
    """Completions; prompt scores, if asked for, have one entry per prompt token, the first of them None."""

    sequences: list[SampledSequence]
    prompt_logprobs: list[float | None] | None = None
    topk_prompt_logprobs: list[TopkLogprobs | None] | None = None
    target_prompt_logprobs: TensorData | None = None
    """float32 in the shape of the tokens that were asked for; NaN in rows that were not scored."""

    prompt_cache_hit_tokens: int = 0
    """Prompt tokens that the platform did not have to compute."""


@dataclass(frozen=True)
class SupportedModel:
    """A base model and its limits."""

    model_name: str
    max_context_length: int
    vocab_size: int
    trainable: bool
    sampleable: bool
    max_lora_rank: int
    loss_fns: list[str]


@dataclass(frozen=True)
class GetServerCapabilitiesResponse:
    """What the platform can do right now."""

    supported_models: list[SupportedModel]


@dataclass(frozen=True)
class ModelData:
    """The base model of a training run; its tokenizer goes by the same name."""

    model_name: str
    tokenizer_id: str


@dataclass(frozen=True)
class GetInfoResponse:
    """What a training client trains; `model_id` is the training run's id."""

    model_id: str
    model_name: str
    model_data: ModelData
    is_lora: bool
    lora_rank: int
    lora_config: LoraConfig
