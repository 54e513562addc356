"""Metrics of a policy's distance from the one that sampled, over the elements that are trained (factor not 0).

KL(q || p) from samples of q, token by token: k1 = mean(q - p), k3 = mean(r - 1 - log r) (Schulman, "Approximating KL
Divergence", 2020). `ratio` is the loss's own, a datum's for GSPO. Clip fractions are shares of the trained elements.
Without any such element the ratio is 1 and everything else 0: nothing trained, nothing moved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor


def policy_metrics(
    pieces: Sequence[tuple[Tensor, Mapping[str, Tensor]]],
    factor: str,
    options: Callable[[Mapping[str, Tensor]], Mapping[str, float | Tensor]],
    log_ratio: Callable[[Tensor, Mapping[str, Tensor]], Tensor],
    clipped: Callable[[Tensor, Tensor, Mapping[str, float | Tensor]], tuple[Tensor, Tensor]] | None,
) -> dict[str, Tensor]:
    """Metrics by name; see the module."""
    trained = [inputs[factor] != 0 for _, inputs in pieces]

    def chosen(values: Sequence[Tensor]) -> Tensor:
        kept = torch.cat([part[mask] for part, mask in zip(values, trained, strict=True)])
        return kept if len(kept) else kept.new_zeros(1)

    log_ratios = [log_ratio(*piece) for piece in pieces]
    ratio = chosen(log_ratios).exp()
    moved = chosen([logprobs - inputs["logprobs"] for logprobs, inputs in pieces])
    metrics = {
        "ratio:mean": ratio.mean(),
        "ratio:max": ratio.max(),
        "kl_k1:mean": -moved.mean(),
        "kl_k3:mean": (moved.exp() - 1 - moved).mean(),
    }
    if clipped is not None:
        hits = [
            clipped(values, inputs["advantages"], options(inputs))
            for values, (_, inputs) in zip(log_ratios, pieces, strict=True)
        ]
        metrics["clip_low_fraction:mean"] = chosen([low.float() for low, _ in hits]).mean()
        metrics["clip_high_fraction:mean"] = chosen([high.float() for _, high in hits]).mean()
    return metrics
