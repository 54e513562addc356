"""The formulas of the losses. services.core.losses has their names, inputs and options.

Every loss is a sum over elements, never a mean. p = logprob of the target under the current weights (the argument),
q = `logprobs`, the behaviour policy's; A = `advantages`, w = `weights`; r = exp(p - q). The mask is multiplied into the
spec's factor (w, A, or the mask itself). sg() stops the gradient. Functions are pure and return one value an element.
Those of a `per_sequence` spec get one datum at a time; the others get any stretch of data, so that a chunk of the
input gives a chunk of the result. Where the factor is 0, q may be anything: it is never looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.core.losses import CLIP_HIGH, CLIP_LOW, LossSpec
from services.trainer.engine.policy_metrics import policy_metrics

Inputs = Mapping[str, Tensor]
Config = Mapping[str, float | Tensor]
"""Options of a loss; clip thresholds may be tensors with one for each element."""


@dataclass(frozen=True)
class LossSegment:
    """Data that a loss looks at together: one datum for a `per_sequence` loss, else any stretch of data."""

    logprobs: Tensor
    inputs: Inputs
    """Of the shape of `logprobs`."""


def cross_entropy(logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """-w p; weights of any sign."""
    return -inputs["weights"] * logprobs


def importance_sampling(logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """-r A: the off-policy policy gradient with the likelihood ratio as importance weight (Kahn and Marshall 1953)."""
    return -token_log_ratio(logprobs, inputs).exp() * inputs["advantages"]


def ppo(logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """-min(r A, clip(r, low, high) A) (Schulman et al., "Proximal Policy Optimization Algorithms", 2017, eq. 7)."""
    return _clipped_surrogate(token_log_ratio(logprobs, inputs), inputs["advantages"], config)


def cispo(logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """-sg(clip(r, low, high)) p A (MiniMax, "MiniMax-M1", 2025, eq. 4): clipped tokens keep their gradient."""
    low, high = _thresholds(config, logprobs)
    ratio = token_log_ratio(logprobs, inputs).detach().exp().clamp(low, high)
    return -ratio * logprobs * inputs["advantages"]


def dro(logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """-(p A - beta/2 (p - q)^2) mask (after Richemond et al., "Offline Regularised RL for LLM Alignment", 2024)."""
    mask = inputs["mask"]
    distance = torch.where(mask != 0, logprobs - inputs["logprobs"], 0.0)
    return -mask * (logprobs * inputs["advantages"] - 0.5 * config["beta"] * distance.square())


def gspo(logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """-min(s A, clip(s, low, high) A) with one ratio s for a datum (Zheng et al., "GSPO", 2025; token form, eq. 14).

    s = exp(mean of p - q over sequence_ratio_mask != 0), 1 if that is nowhere; an element's ratio is
    sg(s) exp(p - sg(p)), so each passes on its own gradient.
    """
    return _clipped_surrogate(sequence_log_ratio(logprobs, inputs), inputs["advantages"], config)


def stable_reinforce(logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """-sg(m min(r, high)) p A: REINFORCE (Williams 1992) that data of older policies cannot upset. Our own definition.

    The likelihood ratio is truncated at `high` (Ionides, "Truncated Importance Sampling", 2008). m is 0 for a datum
    whose geometric mean of r over the trained elements is outside [low, high]: the policy has left it; else 1.
    """
    log_ratio = token_log_ratio(logprobs, inputs).detach()
    low, high = _left_behind(log_ratio, inputs["advantages"], config)
    weight = torch.where(low | high, 0.0, log_ratio.exp().clamp(max=_thresholds(config, log_ratio)[1]))
    return -weight * logprobs * inputs["advantages"]


def token_log_ratio(logprobs: Tensor, inputs: Inputs) -> Tensor:
    """p - q, and 0 where no advantage is: there q may be anything, and exp of anything times 0 may be NaN."""
    return torch.where(inputs["advantages"] != 0, logprobs - inputs["logprobs"], 0.0)


def sequence_log_ratio(logprobs: Tensor, inputs: Inputs) -> Tensor:
    """log of GSPO's ratio for each element of one datum; 0 where no advantage is."""
    counted = inputs["sequence_ratio_mask"] != 0
    constant = logprobs.detach()
    mean = torch.where(counted, constant - inputs["logprobs"], 0.0).sum() / counted.sum().clamp(min=1)
    return torch.where(inputs["advantages"] != 0, mean + (logprobs - constant), 0.0)


def left_or_truncated(log_ratio: Tensor, advantages: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """The trained elements of a datum that is below the low threshold, and those that are above the high one."""
    low, high = _left_behind(log_ratio.detach(), advantages, config)
    trained = advantages != 0
    return trained & low, trained & (high | (log_ratio.detach().exp() > config[CLIP_HIGH]))


def _left_behind(log_ratio: Tensor, advantages: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Whether the geometric mean of a datum's ratios is below the low threshold, and above the high one."""
    trained = advantages != 0
    mean = torch.where(trained, log_ratio, 0.0).sum() / trained.sum().clamp(min=1)
    return mean.exp() < config[CLIP_LOW], mean.exp() > config[CLIP_HIGH]


def clipped_one_sided(log_ratio: Tensor, advantages: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Where min(r A, clip(r) A) is the clipped one: at the low threshold, at the high one."""
    ratio = log_ratio.detach().exp()
    return (advantages < 0) & (ratio < config[CLIP_LOW]), (advantages > 0) & (ratio > config[CLIP_HIGH])


def clipped_two_sided(log_ratio: Tensor, advantages: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Where r is below the low threshold, and where it is above the high one."""
    ratio, trained = log_ratio.detach().exp(), advantages != 0
    return trained & (ratio < config[CLIP_LOW]), trained & (ratio > config[CLIP_HIGH])


def _clipped_surrogate(log_ratio: Tensor, advantages: Tensor, config: Config) -> Tensor:
    """-min(r A, clip(r, low, high) A), finite with gradient 0 also where a clipped r overflows."""
    low, high = clipped_one_sided(log_ratio, advantages, config)
    least, most = _thresholds(config, log_ratio)
    live = torch.where(low | high, 0.0, log_ratio).exp()
    return -advantages * torch.where(high, most, torch.where(low, least, live))


def _thresholds(config: Config, like: Tensor) -> tuple[Tensor, Tensor]:
    """The low and the high clip threshold: of each element, or one for all."""
    low, high = (
        value if isinstance(value, Tensor) else like.new_full((), value)
        for value in (config[CLIP_LOW], config[CLIP_HIGH])
    )
    return low, high


@dataclass(frozen=True)
class LossFunction:
    """The formulas of one loss."""

    elements: Callable[[Tensor, Inputs, Config], Tensor]
    """The loss of each element."""

    log_ratio: Callable[[Tensor, Inputs], Tensor] | None = None
    """log of the ratio that a policy's loss is built on, for its metrics; None for a loss without a policy."""

    clipped: Callable[[Tensor, Tensor, Config], tuple[Tensor, Tensor]] | None = None
    """Where the ratio is clipped, low and high, for its metrics; None for a loss that does not clip."""


_FUNCTIONS: Mapping[str, LossFunction] = {
    "cross_entropy": LossFunction(cross_entropy),
    "importance_sampling": LossFunction(importance_sampling, token_log_ratio),
    "ppo": LossFunction(ppo, token_log_ratio, clipped_one_sided),
    "cispo": LossFunction(cispo, token_log_ratio, clipped_two_sided),
    "dro": LossFunction(dro, token_log_ratio),
    "gspo": LossFunction(gspo, sequence_log_ratio, clipped_one_sided),
    "stable_reinforce": LossFunction(stable_reinforce, token_log_ratio, left_or_truncated),
}


@dataclass(frozen=True)
class Loss:
    """A loss function with its options."""

    spec: LossSpec
    config: Mapping[str, float]

    def elements(self, segment: LossSegment) -> Tensor:
        """The loss of each element, of the segment's shape."""
        return _FUNCTIONS[self.spec.name].elements(segment.logprobs, segment.inputs, self._options(segment.inputs))

    def _options(self, inputs: Inputs) -> Config:
        """The options, with those that the data have for each element in place of the one for all."""
        return {**self.config, **{name: inputs[name] for name in self.spec.by_token if name in inputs}}

    def segments(self, logprobs: Tensor, inputs: Inputs, lengths: Sequence[int]) -> list[LossSegment]:
        """Data laid end to end, rows of `lengths`, cut as the loss needs it."""
        if not self.spec.per_sequence:
            return [LossSegment(logprobs, inputs)]
        parts = {name: torch.split_with_sizes(values, list(lengths)) for name, values in inputs.items()}
        return [
            LossSegment(datum, {name: values[index] for name, values in parts.items()})
            for index, datum in enumerate(torch.split_with_sizes(logprobs, list(lengths)))
        ]

    def gradient(self, segments: Sequence[LossSegment]) -> Tensor:
        """dL/dlogprobs of segments laid end to end."""
        with torch.enable_grad():
            leaves = [LossSegment(segment.logprobs.detach().requires_grad_(), segment.inputs) for segment in segments]
            losses = [self.elements(leaf).sum() for leaf in leaves]
            return torch.cat(torch.autograd.grad(losses, [leaf.logprobs for leaf in leaves]))

    def metrics(self, segments: Sequence[LossSegment]) -> dict[str, float]:
        """Named `name:reduction`; always loss:sum."""
        losses = [self.elements(segment).sum(dtype=torch.float64) for segment in segments]
        metrics = {"loss:sum": torch.stack(losses).sum()}
        function = _FUNCTIONS[self.spec.name]
        if function.log_ratio is not None:
            pairs = [(segment.logprobs, segment.inputs) for segment in segments]
            metrics |= policy_metrics(pairs, self.spec.factor, self._options, function.log_ratio, function.clipped)
        values: list[float] = torch.stack([value.double() for value in metrics.values()]).tolist()
        return dict(zip(metrics, values, strict=True))
