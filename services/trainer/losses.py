"""What each loss computes. services.core.losses has their names, inputs and options.

Every loss is a sum over elements, never a mean. p = logprob of the target under the current weights (the argument),
q = `logprobs`, the behaviour policy's; A = `advantages`, w = `weights`, both already multiplied by `mask`;
r = exp(p - q). Functions are pure and work element by element on tensors of one shape, so a chunk of a batch gives a
chunk of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from services.core.losses import LOSSES

Inputs = Mapping[str, Tensor]
Config = Mapping[str, float]


def cross_entropy(logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """-w p; weights of any sign."""
    return -inputs["weights"] * logprobs


def importance_sampling(logprobs: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """-r A: the off-policy policy gradient with the likelihood ratio as importance weight (Kahn and Marshall 1953)."""
    return -_log_ratio(logprobs, inputs).exp() * inputs["advantages"]


def ratio_metrics(logprobs: Tensor, inputs: Inputs, config: Config) -> dict[str, Tensor]:
    """How far the policy has moved from the one that sampled, over the elements with an advantage.

    KL(q || p) from samples of q: k1 = mean(q - p), k3 = mean(r - 1 - log r) (Schulman, "Approximating KL Divergence",
    2020). Without any such element the ratio is 1 and the divergence 0: nothing trained, nothing moved.
    """
    trained = inputs["advantages"] != 0
    log_ratio = (logprobs - inputs["logprobs"])[trained] if trained.any() else logprobs.new_zeros(1)
    ratio = log_ratio.exp()
    return {
        "ratio:mean": ratio.mean(),
        "ratio:max": ratio.max(),
        "kl_k1:mean": -log_ratio.mean(),
        "kl_k3:mean": (ratio - 1 - log_ratio).mean(),
    }


def _log_ratio(logprobs: Tensor, inputs: Inputs) -> Tensor:
    """p - q, and 0 where no advantage is: there q may be anything, and exp of anything times 0 may be NaN."""
    return torch.where(inputs["advantages"] != 0, logprobs - inputs["logprobs"], 0.0)


@dataclass(frozen=True)
class Loss:
    """A loss function with its options."""

    elements: Callable[[Tensor, Inputs, Config], Tensor]
    """(logprobs, inputs, config) -> loss of each element, all of one shape."""

    config: Config

    extra_metrics: Callable[[Tensor, Inputs, Config], dict[str, Tensor]] | None = None

    def gradient(self, logprobs: Tensor, inputs: Inputs) -> Tensor:
        """dL/dlogprobs, of logprobs' shape."""
        with torch.enable_grad():
            leaf = logprobs.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.elements(leaf, inputs, self.config).sum(), leaf)
        return gradient

    def metrics(self, logprobs: Tensor, inputs: Inputs) -> dict[str, float]:
        """Named `name:reduction`; always loss:sum."""
        metrics = {"loss:sum": self.elements(logprobs, inputs, self.config).sum(dtype=torch.float64)}
        if self.extra_metrics is not None:
            metrics |= self.extra_metrics(logprobs, inputs, self.config)
        values: list[float] = torch.stack([value.double() for value in metrics.values()]).tolist()
        return dict(zip(metrics, values, strict=True))


_FUNCTIONS = {
    "cross_entropy": (cross_entropy, None),
    "importance_sampling": (importance_sampling, ratio_metrics),
}


def resolve_loss(name: str, config: Config) -> Loss:
    """The loss of a request: the options that it gives, the table's defaults for the others."""
    elements, extra_metrics = _FUNCTIONS[name]
    return Loss(elements, {**LOSSES[name].config, **config}, extra_metrics)
