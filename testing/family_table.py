"""docs/families.md from the rows of services.model.families.

`python -m testing.family_table > docs/families.md` writes the page anew.
"""

from __future__ import annotations

from services.model.families import SUPPORTED_FAMILIES, Family

INTRODUCTION = """# Model families

The base models that are served, by `model_type` of their config.json. A model of another family, with other kinds of
layers, quantized, or with an option that is not computed here is refused by name when it is loaded; none is run
approximately. "Merge" writes a full model, and every adapter is exported in PEFT's format. This page is made from the
code: `python -m testing.family_table > docs/families.md`.

| model_type | architectures | train | sample, merge | what adapters may touch | has to be so |
|---|---|---|---|---|---|
"""
ADDING = """
## Adding a family

A family whose forward pass is full attention with rotary positions, a gated MLP and a linear head needs two entries
and no code:

1. A row in `services/model/families.py`: the names of its architectures, the paths of its modules where they differ,
   and the fields of its configuration whose effect is computed, or that have none here. Every other field that
   transformers reads for the family is refused unless it is at its default; `required` names fields whose default
   would change the numbers.
2. A tiny configuration in `testing/tiny_models.py`, and its name in `FREE` of `tests/model/test_families.py`.

The tests there compare it with plain transformers and PEFT, with norms and biases away from ones and zeros:
log-probabilities and gradients of two adapters in one pass and alone, to the same bits; a step; an exported and a
merged adapter; prompts and greedy samples. Attention functions refuse arguments that they do not compute
(`services/model/attention_arguments.py`), so a window, a cap or a sink is an error there and not another number.
"""


def page() -> str:
    """The text of docs/families.md."""
    rows = [_row(model_type, family) for model_type, family in sorted(SUPPORTED_FAMILIES.items())]
    return INTRODUCTION + "".join(f"{row}\n" for row in rows) + ADDING


def _row(model_type: str, family: Family) -> str:
    samples = "yes" if all(kind.keeps == "keys and values" for kind in family.kinds.values()) else "no"
    required = ", ".join(f"`{name}` is {'null' if value is None else value}" for name, value in family.required.items())
    cells = (
        f"`{model_type}`",
        ", ".join(f"`{name}`" for name in family.architectures),
        "yes",
        samples,
        ", ".join(f"`{name}`" for name in family.last_names()),
        required or "-",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(page(), end="")
