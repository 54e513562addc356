"""Imports of adapters: what a header says is checked without the content, whatever it says."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.core.errors import InvalidArgumentError
from services.core.storage.uploads import CONFIG_FILE, WEIGHTS_FILE
from services.model.adapter_config import AdapterConfig
from services.model.adapter_files import write_adapter
from services.model.adapter_import import check_adapter, import_adapter, max_header_bytes
from services.model.base import BaseModel
from testing.rows import perturbed_adapter
from tests.model.hostile_adapters import many_tensors, write_header

A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def base(load: Callable[..., BaseModel]) -> BaseModel:
    return load()


@pytest.fixture
def adapter(base: BaseModel, tmp_path: Path) -> Path:
    write_adapter(tmp_path, perturbed_adapter(base, AdapterConfig(4, seed=1, train_unembed=False)), base)
    return tmp_path


def check(directory: Path, base: BaseModel) -> AdapterConfig:
    return check_adapter(directory / CONFIG_FILE, directory / WEIGHTS_FILE, base, rename_base_model=False)


def read(directory: Path, base: BaseModel) -> torch.Tensor:
    return import_adapter(directory / CONFIG_FILE, directory / WEIGHTS_FILE, base, rename_base_model=False).flat


def test_an_adapter_is_checked_without_its_content(base: BaseModel, adapter: Path) -> None:
    whole = read(adapter, base)
    weights = adapter / WEIGHTS_FILE
    size, (length,) = weights.stat().st_size, struct.unpack("<Q", weights.read_bytes()[:8])
    os.truncate(weights, 8 + length)
    os.truncate(weights, size)  # the same header before nothing but zeros
    assert check(adapter, base).rank == 4
    assert whole.any()
    assert not read(adapter, base).any()


def test_headers_are_bounded_by_what_the_base_model_can_need(base: BaseModel, adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS_FILE)
    save_file(tensors, adapter / WEIGHTS_FILE, metadata={"notes": "x" * 200_000})
    check(adapter, base)
    save_file(tensors, adapter / WEIGHTS_FILE, metadata={"notes": "x" * max_header_bytes(base)})
    with pytest.raises(InvalidArgumentError, match=rf"its header must be at most {max_header_bytes(base)} bytes"):
        check(adapter, base)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is missing or corrupted"),
        (b"\x80\x04cos\nsystem\n(S'id'\ntR.", "header must be at most"),
        (struct.pack("<Q", 2**63), "header must be at most"),
        (struct.pack("<Q", 100) + b"{}", "is missing or corrupted"),
        (struct.pack("<Q", 2000) + b"[" * 2000, "is missing or corrupted"),
    ],
    ids=["empty", "pickle", "length", "truncated", "nested"],
)
def test_what_is_no_safetensors_file_is_refused(base: BaseModel, adapter: Path, content: bytes, complaint: str) -> None:
    (adapter / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=complaint) as refused:
        check(adapter, base)
    assert refused.value.reason == "BAD_ADAPTER"


@pytest.mark.parametrize("shape", [[2**40, 2**40], [2**62, 0], [-1, 4], [4], []], ids=str)
def test_absurd_shapes_are_refused(base: BaseModel, adapter: Path, shape: list[int]) -> None:
    tensors = load_file(adapter / WEIGHTS_FILE)
    header: dict[str, object] = {
        name: {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [0, 0]} for name, tensor in tensors.items()
    }
    header[A] = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    write_header(adapter, header)
    with pytest.raises(InvalidArgumentError, match="corrupted"):
        check(adapter, base)


def test_a_tensor_of_no_linear_is_refused_by_name(base: BaseModel, adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS_FILE)
    save_file(
        {**tensors, "base_model.model.model.layers.9.q_proj.lora_A.weight": torch.zeros(2)}, adapter / WEIGHTS_FILE
    )
    with pytest.raises(InvalidArgumentError, match=r"unexpected tensor .*layers\.9\.q_proj"):
        check(adapter, base)
    many_tensors(adapter, 500)
    with pytest.raises(
        InvalidArgumentError, match="without a matrix of a linear of this base model, whose first tensor is 'a0'"
    ):
        check(adapter, base)
