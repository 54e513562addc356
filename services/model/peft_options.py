"""The options of PEFT's LoraConfig: what becomes of each when an adapter is read.

An option that changes what an adapter computes is honoured, or refused by name unless it has the value that means
nothing. What only tells how the adapter was trained, initialised or stored is ignored, and so are keys that PEFT itself
does not know: it ignores them too. A field of a later PEFT that has no row here is refused unless it has its default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import Enum

from peft import LoraConfig

from services.core.errors import InvalidArgumentError, broken_rule, quoted


class Use(Enum):
    """What is done about an option."""

    HONOURED = "honoured"
    IGNORED = "ignored"
    NEUTRAL_ONLY = "refused unless neutral"


OPTIONS: Mapping[str, Use] = {
    "peft_type": Use.HONOURED,
    "base_model_name_or_path": Use.HONOURED,
    "r": Use.HONOURED,
    "lora_alpha": Use.HONOURED,
    "use_rslora": Use.HONOURED,
    "rank_pattern": Use.HONOURED,
    "alpha_pattern": Use.HONOURED,
    "target_modules": Use.HONOURED,
    "exclude_modules": Use.HONOURED,
    "layers_to_transform": Use.HONOURED,
    "layers_pattern": Use.HONOURED,
    "init_lora_weights": Use.HONOURED,
    # What a file was made with, and for which class.
    "task_type": Use.IGNORED,
    "auto_mapping": Use.IGNORED,
    "peft_version": Use.IGNORED,
    "revision": Use.IGNORED,
    "inference_mode": Use.IGNORED,
    "runtime_config": Use.IGNORED,
    # How it was trained; here nothing is dropped out.
    "lora_dropout": Use.IGNORED,
    # Read only beside another option that is refused, or that changes the base model and is refused.
    "loftq_config": Use.IGNORED,
    "eva_config": Use.IGNORED,
    "corda_config": Use.IGNORED,
    "lora_ga_config": Use.IGNORED,
    "qalora_group_size": Use.IGNORED,
    "megatron_core": Use.IGNORED,
    # PEFT itself takes it as False where the adapted layer is a linear, as all are here.
    "fan_in_fan_out": Use.IGNORED,
    # Other formulas than W + s B A, more parameters than A and B, or other layers than the base model's.
    "bias": Use.NEUTRAL_ONLY,
    "lora_bias": Use.NEUTRAL_ONLY,
    "modules_to_save": Use.NEUTRAL_ONLY,
    "trainable_token_indices": Use.NEUTRAL_ONLY,
    "target_parameters": Use.NEUTRAL_ONLY,
    "layer_replication": Use.NEUTRAL_ONLY,
    "ensure_weight_tying": Use.NEUTRAL_ONLY,
    "use_dora": Use.NEUTRAL_ONLY,
    "use_qalora": Use.NEUTRAL_ONLY,
    "use_bdlora": Use.NEUTRAL_ONLY,
    "velora_config": Use.NEUTRAL_ONLY,
    "kasa_config": Use.NEUTRAL_ONLY,
    "arrow_config": Use.NEUTRAL_ONLY,
    "monteclora_config": Use.NEUTRAL_ONLY,
    "alora_invocation_tokens": Use.NEUTRAL_ONLY,
    "megatron_config": Use.NEUTRAL_ONLY,
}

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(LoraConfig)}

_INITIALISATIONS = ("true", "false", "gaussian", "eva", "orthogonal", "mica")
"""Those that leave the base model's weights alone."""


def check_options(content: Mapping[str, object], label: str) -> None:
    """Refuses an adapter whose options change what it computes in a way that is not supported.

    Args:
        content: adapter_config.json.
        label: what errors call it.

    Raises:
        InvalidArgumentError: names the option.
    """
    if (kind := content.get("peft_type", "LORA")) != "LORA":
        raise refusal(label, "peft_type", quoted("LORA"), kind)
    for option, value in content.items():
        use = OPTIONS.get(option, Use.NEUTRAL_ONLY if option in _DEFAULTS else Use.IGNORED)
        if use is Use.NEUTRAL_ONLY and value and value != _DEFAULTS.get(option):
            neutral = _DEFAULTS.get(option)
            neutral = neutral if isinstance(neutral, str) else value is not True and None
            raise refusal(label, option, f"{quoted(neutral)}, because nothing else is supported", value)
    initialisation = content.get("init_lora_weights")
    if initialisation is not None and str(initialisation).lower() not in _INITIALISATIONS:
        # PEFT takes the initial B A out of the base model's weights, so the adapter means nothing without the same.
        rule = (
            f"one of {', '.join(_INITIALISATIONS)}, which leave the base model's weights as they are; PEFT's "
            "save_pretrained converts an adapter with path_initial_model_for_weight_conversion, and says true then"
        )
        raise refusal(label, "init_lora_weights", rule, initialisation)


def refusal(label: str, option: str, rule: str, got: object) -> InvalidArgumentError:
    """The refusal of an option's value."""
    return InvalidArgumentError(f"{label}: {option} {broken_rule(rule, quoted(got))}", reason="BAD_ADAPTER")
