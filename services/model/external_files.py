"""An adapter's two files with the names of the official SDK's service, for programs that read its exports.

The names are those of PEFT's files but for the unembedding, which is `unembed_tokens` whether or not the base model
shares its matrix with the embedding. Such programs scale every product B A by lora_alpha / r. The adapter of an import
may scale otherwise (rank-stabilised, or with alphas of its linears); its B is stored scaled, and lora_alpha is r.
"""

from __future__ import annotations

import json
from pathlib import Path

from services.core.storage.uploads import CONFIG_FILE, WEIGHTS_FILE
from services.model.adapter_files import write_adapter, write_tensors
from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.model.tensor_names import matrix_names

UNEMBEDDING = "model.unembed_tokens"


def write_external(directory: Path, weights: AdapterWeights, base: BaseModel) -> None:
    """Writes the two files into an existing directory; errors as `write_tensors`."""
    write_adapter(directory, weights, base)
    config, renamed = weights.config, {base.family.unembedding: UNEMBEDDING}
    scales_plainly = config.is_uniform and not config.use_rslora
    tensors = {}
    for linear, (a, b) in weights.linears.items():
        name_a, name_b = matrix_names(renamed.get(linear, linear))
        tensors[name_a] = a.cpu()
        tensors[name_b] = b.cpu() if scales_plainly else b.cpu() * config.scale_of(linear)
    write_tensors(tensors, directory / WEIGHTS_FILE)
    path = directory / CONFIG_FILE
    content = json.loads(path.read_text())
    last_names = {old.rpartition(".")[2]: new.rpartition(".")[2] for old, new in renamed.items()}
    content["target_modules"] = sorted(last_names.get(name, name) for name in content["target_modules"])
    if not scales_plainly:
        content |= {"lora_alpha": config.rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
    path.write_text(json.dumps(content, indent=2) + "\n")
