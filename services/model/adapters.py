"""LoRA adapters: their layout, their weights as one flat float32 buffer, and PEFT's initialisation of them.

The order of the flat buffer is the base model's own: for each adapted linear A [rank, in], then B [out, rank].
Gradients and optimizer moments use the same layout, so adding a gradient or an optimizer step is one operation on one
buffer. PEFT decides which linears match and how they are initialised; nothing of PEFT stays on the base model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from services.core.errors import InvalidArgumentError
from services.model.adapter_config import AdapterConfig
from services.model.base import BaseModel
from services.model.families import Family

_ADAPTER_NAME = "default"


class LinearShape(NamedTuple):
    """The size of one linear's A [rank, inputs] and B [outputs, rank]."""

    rank: int
    inputs: int
    outputs: int


@dataclass(frozen=True)
class AdapterLayout:
    """The linears that an adapter touches, in the order of the flat buffer."""

    linears: Mapping[str, LinearShape]
    """By full module name."""

    @classmethod
    def of(cls, base: BaseModel, config: AdapterConfig) -> AdapterLayout:
        """The layout of an adapter on a base model.

        Raises:
            InvalidArgumentError: it adapts nothing, or a linear that the base model does not have.
        """
        targets, linears = config.targets(base.family), base.adaptable_linears()
        if absent := [name for name in targets if "." in name and name not in linears]:
            raise InvalidArgumentError.must_be("lora_config.target_modules", "linears of the base model", str(absent))
        return cls(
            {
                name: LinearShape(config.rank_of(name), linear.in_features, linear.out_features)
                for name, linear in linears.items()
                if name in targets or name.rpartition(".")[2] in targets
            }
        )

    @property
    def sizes(self) -> list[int]:
        """Elements of each A and B in order."""
        return [shape.rank * features for shape in self.linears.values() for features in shape[1:]]

    @property
    def max_rank(self) -> int:
        """The largest rank of a linear."""
        return max(shape.rank for shape in self.linears.values())

    @property
    def numel(self) -> int:
        """Elements of the whole buffer."""
        return sum(self.sizes)


class AdapterWeights:
    """Values in an adapter's layout: the weights themselves, or a gradient or moment of them."""

    def __init__(self, config: AdapterConfig, layout: AdapterLayout, flat: Tensor) -> None:
        self.config = config
        self.layout = layout
        self.flat = flat
        """float32 [numel]."""
        pieces = iter(torch.split_with_sizes(flat, layout.sizes))
        self.linears: Mapping[str, tuple[Tensor, Tensor]] = {
            name: (next(pieces).view(rank, inputs), next(pieces).view(outputs, rank))
            for name, (rank, inputs, outputs) in layout.linears.items()
        }
        """(A [rank, in], B [out, rank]) by full module name; views of `flat`."""

    def scale_of(self, linear: str) -> float:
        """Factor on B A of a linear, by its full name."""
        return self.config.scale_of(linear)

    def to(self, device: torch.device | str) -> AdapterWeights:
        """The same values on a device."""
        return AdapterWeights(self.config, self.layout, self.flat.to(device))

    def zeros(self) -> AdapterWeights:
        """A fresh buffer of the same layout, all zero."""
        return AdapterWeights(self.config, self.layout, torch.zeros_like(self.flat))


def peft_config(config: AdapterConfig, base_model: str, family: Family) -> LoraConfig:
    """An adapter as PEFT describes it, for a base model of a name and a family."""
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # PEFT divides it, whole or not
        rank_pattern=dict(config.rank_pattern),
        alpha_pattern=dict(config.alpha_pattern),
        use_rslora=config.use_rslora,
        lora_dropout=0.0,
        bias="none",
        target_modules=list(config.targets(family)),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_model,
        inference_mode=True,
    )


def init_adapter(base: BaseModel, config: AdapterConfig) -> AdapterWeights:
    """A fresh adapter: A Kaiming-uniform, B zero, so it changes nothing yet.

    PEFT injects it into a skeleton of the base model that has its names and shapes but no weights, in float32 on the
    CPU: the same seed gives the same bits on every device, and the cost does not depend on who else trains.
    """
    if config.seed is None:
        raise InvalidArgumentError.at("lora_config.seed", "required: a fresh adapter needs one")
    layout = AdapterLayout.of(base, config)
    skeleton = _skeleton(layout)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        inject_adapter_in_model(peft_config(config, base.name, base.family), skeleton, _ADAPTER_NAME)
    names = [f"{name}.{part}.{_ADAPTER_NAME}.weight" for name in layout.linears for part in ("lora_A", "lora_B")]
    flat = torch.cat([skeleton.get_parameter(name).detach().reshape(-1) for name in names])
    return AdapterWeights(config, layout, flat.to(base.device))


def _skeleton(layout: AdapterLayout) -> nn.Module:
    """Empty modules with linears at the layout's names; each linear's weight is one zero seen through its shape."""
    root = nn.Module()
    for name, (_, inputs, outputs) in layout.linears.items():
        linear = nn.Linear(inputs, outputs, bias=False, device="meta")
        linear.weight = nn.Parameter(torch.zeros(()).expand(outputs, inputs), requires_grad=False)
        *parents, last = name.split(".")
        parent_module = root
        for parent in parents:
            if parent not in parent_module._modules:
                parent_module.add_module(parent, nn.Module())
            parent_module = parent_module.get_submodule(parent)
        parent_module.add_module(last, linear)
    return root
