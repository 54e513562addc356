"""The frozen linear: what every linear that adds adapters to its output shares."""

from __future__ import annotations

from torch import nn


class FrozenLinear(nn.Linear):
    """A frozen linear in place of a base model's own. It shares that one's weight; subclasses add adapters to rows.

    Args:
        linear: what it replaces.
        name: the full name of that module.
    """

    def __init__(self, linear: nn.Linear, name: str) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would allocate a weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.name = name
