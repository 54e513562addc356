"""A base model that cannot be served is refused by name before anything starts, without loading torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from services.cli.model_check import check_models
from services.core.base_model_names import parse_base_models
from services.core.errors import FailedPreconditionError

QWEN3 = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        (None, r"must be a directory with a config\.json.*config\.json is missing"),
        ("{", r"config\.json cannot be read: "),
        ("[]", r"config\.json is not a JSON object"),
        (json.dumps({"model_type": "gpt2"}), r"of the families llama, .*qwen3, .*of the family 'gpt2'"),
        (json.dumps({**QWEN3, "quantization_config": {"bits": 4}}), r"with quantized weights"),
        (json.dumps({**QWEN3, "architectures": ["Other"]}), r"with the architecture Other"),
    ],
)
def test_a_configuration_that_is_not_served(config: str | None, fault: str, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(FailedPreconditionError, match=f"^lamp cannot be served: base_model: .*{fault}"):
        check_models(parse_base_models([f"lamp={tmp_path}"]))


@pytest.mark.parametrize("source", ["/nowhere/model", "./nowhere", "a/b/c", "lamp=../nowhere", "lamp=x y"])
def test_what_is_neither_a_directory_nor_a_name(source: str) -> None:
    with pytest.raises(
        FailedPreconditionError, match="cannot be served: base_model: must be a directory with a config"
    ):
        check_models(parse_base_models([source]))


def test_what_is_served_and_what_a_worker_will_download(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3))
    check_models(parse_base_models([f"lamp={tmp_path}", "nobody/has-this-model"]))


def test_the_check_loads_neither_torch_nor_transformers(tmp_path: Path) -> None:
    program = (
        "import sys; from services.cli.model_check import check_models\n"
        "from services.core.base_model_names import parse_base_models\n"
        "try: check_models(parse_base_models(sys.argv[1:]))\n"
        "finally: print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "[]\n"
