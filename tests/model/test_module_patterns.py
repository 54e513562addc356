"""Patterns of module names: PEFT's own meaning of them, and no pattern that never ends."""

from __future__ import annotations

import pytest
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from services.model.module_patterns import PatternError, Targets, by_pattern, targeted

NAMES = [
    f"model.layers.{layer}.{part}"
    for layer in (0, 1, 2, 10, 11)
    for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj", "mlp.experts.1.up_proj")
] + ["lm_head", "model.h.3.q_proj", "q_proj"]


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["1.self_attn.q_proj", "lm_head", "proj"]},
        {"target_modules": ["q_proj"], "layers_to_transform": [1, 3]},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": 1},
        {"target_modules": ["q_proj"], "layers_to_transform": [3, 10], "layers_pattern": "h"},
        {"target_modules": ["q_proj"], "layers_to_transform": [3, 10], "layers_pattern": ["layers", "h"]},
        {"target_modules": ["model.layers.0.self_attn.q_proj", "k_proj"], "layers_to_transform": [2]},
        {"target_modules": r"model\.layers\.1\d?\..*"},
        {"target_modules": "q_proj"},
        {"target_modules": "q_proj|lm_head"},
        {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["layers.1.self_attn.k_proj", "q_proj"]},
        {"target_modules": ["q_proj"], "exclude_modules": r".*\.1\d\..*"},
    ],
    ids=str,
)
def test_targets_are_those_of_peft(options: dict[str, object]) -> None:
    config = LoraConfig(**options)  # type: ignore[arg-type]
    expected = {name for name in NAMES if check_target_module_exists(config, name) and not excluded(config, name)}
    layers = options.get("layers_to_transform", [])
    patterns = options.get("layers_pattern", [])
    found = targeted(
        Targets(
            options["target_modules"],  # type: ignore[arg-type]
            options.get("exclude_modules", []),  # type: ignore[arg-type]
            layers if isinstance(layers, list) else [layers],  # type: ignore[list-item]
            patterns if isinstance(patterns, list) else [patterns],  # type: ignore[list-item]
        ),
        NAMES,
        "lm_head",
    )
    assert found == expected


def excluded(config: LoraConfig, name: str) -> bool:
    """PEFT answers with an object of this class, which is false nowhere."""
    return type(check_target_module_exists(config, name)).__name__ == "_ExcludedModule"


@pytest.mark.parametrize(
    "patterns",
    [
        {"q_proj": 2.0, "k_proj": 3.0},
        {"layers.1.self_attn.q_proj": 5.0, "q_proj": 2.0},
        {"q_proj": 2.0, "layers.1.self_attn.q_proj": 5.0},
        {r"layers\.(0|1)\..*": 4.0, ".*proj": 1.0},
        {"^model.layers.0.self_attn.q_proj": 7.0, "proj": 9.0, "head": 3.0},
        {"1.up_proj": 6.0, "lm_head|q_proj": 8.0},
    ],
    ids=str,
)
def test_the_first_pattern_counts_as_in_peft(patterns: dict[str, float]) -> None:
    keys = {name: get_pattern_key(list(patterns), name) for name in NAMES}
    expected = {name: patterns[key] for name, key in keys.items() if key in patterns}
    assert by_pattern("rank_pattern", patterns, NAMES) == expected


def test_a_pattern_that_takes_for_ever_is_refused() -> None:
    pattern = "(.+.+)+x"
    with pytest.raises(PatternError, match="matched within 2 seconds") as refused:
        by_pattern("rank_pattern", {"q_proj": 2.0, pattern: 1.0}, ["a" * 60, "q_proj"])
    assert refused.value.expression == pattern
