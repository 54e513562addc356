"""What goes in: how values become tensors, and what is refused where it is written."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinker_client import _catalog_convert, _convert, types
from tinker_proto.tensor import to_array
from tinker_proto.v1 import training_pb2

TOKENS = types.ModelInput.from_ints([1, 2])


def tensor(name: str, value: object) -> types.TensorData:
    return types.Datum(TOKENS, {name: value}).loss_fn_inputs[name]


@pytest.mark.parametrize("name", ["weights", "advantages", "logprobs", "mask", "sequence_ratio_mask"])
def test_a_list_becomes_what_its_name_says(name: str) -> None:
    assert tensor("target_tokens", [3, 4]).dtype == "int64"
    assert tensor(name, [1, 0]).dtype == "float32"
    assert tensor(name, [[0.5, 1], [2, 3]]).shape == [2, 2]
    assert tensor(name, []).dtype == "float32"


def test_a_list_under_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r'loss_fn_inputs\["other"\]: must be an array'):
        tensor("other", [1])
    assert tensor("other", np.array([1])).dtype == "int64"


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("target_tokens", [1.0, 2.0], "must be a list of integers"),
        ("target_tokens", [2**63], "must be a list of integers"),
        ("weights", [True, False], "got bool"),
        ("weights", [1.0, None], "got object"),
        ("weights", ["a"], "must be a list of numbers"),
        ("weights", [[1.0], [1.0, 2.0]], "must be rows of the same length"),
        ("weights", [1e300], "must be in the range of float32"),
        ("weights", np.array([True]), r"dtype: must be a signed integer or a float \(got bool\)"),
        ("target_tokens", np.array([1], np.uint8), r"dtype: must be a signed integer or a float \(got uint8\)"),
        (
            "target_tokens",
            torch.tensor([1], dtype=torch.uint8),
            r"dtype: must be a signed integer or a float \(got uint8\)",
        ),
        ("weights", np.array([1e300]), "must be in the range of float32"),
        ("weights", 1.0, r"must be TensorData, an array, a tensor or a list \(got float\)"),
        ("weights", torch.ones(2, 2).to_sparse(), r"layout: must be torch.strided \(got torch.sparse_coo\)"),
    ],
)
def test_bad_values_are_refused_by_name_with_what_is_allowed(name: str, value: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        tensor(name, value)
    assert f'loss_fn_inputs["{name}"]' in str(caught.value)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.array([1.5], np.float64), "float32"),
        (np.array([1.5], np.float16), "float32"),
        (np.array([1], np.int32), "int64"),
        (torch.tensor([1.5], dtype=torch.float64), "float32"),
        (torch.tensor([1.5], dtype=torch.bfloat16), "float32"),
        (torch.tensor([1], dtype=torch.int32), "int64"),
        (torch.tensor([1.5], requires_grad=True), "float32"),
    ],
)
def test_arrays_keep_their_kind_and_get_the_width_that_travels(value: object, dtype: str) -> None:
    assert tensor("other", value).dtype == dtype


@given(hnp.arrays(st.sampled_from([np.dtype(np.float32), np.dtype(np.int64)]), hnp.array_shapes(min_side=0)))
def test_tensor_data_keeps_every_value_and_can_be_rebuilt_from_its_fields(array: np.ndarray) -> None:
    data = types.TensorData.from_numpy(array)
    np.testing.assert_array_equal(data.to_numpy(), array)
    assert data.tolist() == array.tolist() or np.isnan(array).any()
    rebuilt = types.TensorData(data.data, data.dtype, data.shape)
    np.testing.assert_array_equal(rebuilt.to_numpy(), array)


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_tensor_data_never_changes(dtype: type) -> None:
    array = np.array([1, 2], dtype)
    data = types.TensorData.from_numpy(array)
    array[0] = 9
    data.to_numpy()[0] = 9
    data.to_torch()[0] = 9
    assert data.data == [1, 2]


def test_tensor_data_is_equal_by_dtype_and_values() -> None:
    data = types.TensorData.from_numpy(np.array([1.0, 2.0]))
    assert data == types.TensorData([1.0, 2.0], "float32")
    assert data != types.TensorData([1, 2], "int64")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([1, 2], "int64", [3]), r"fills shape \[3\]"),
        (([[1], [2]], "int64", [2]), "data: must be a flat list"),
        (([1], "float64"), r"dtype: must be 'int64' or 'float32' \(got 'float64'\)"),
    ],
)
def test_tensor_data_is_checked_when_it_is_made(arguments: tuple, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        types.TensorData(*arguments)


def test_tokens_may_be_any_sequence_of_integers() -> None:
    expected = types.ModelInput.from_ints([1, 2])
    assert types.ModelInput.from_ints(np.array([1, 2])) == expected
    assert types.ModelInput.from_ints(torch.tensor([1, 2])) == expected
    assert types.ModelInput.from_ints((np.int64(1), 2)) == expected
    for wrong in ([1.5], ["a"], [[1]], [None]):
        with pytest.raises(ValueError, match="flat sequence of integers"):
            types.ModelInput.from_ints(wrong)


def test_a_token_that_no_field_can_hold_is_refused_by_name() -> None:
    datum = types.Datum(types.ModelInput.from_ints([2**40]))
    with pytest.raises(ValueError, match=r"data\[3\]: "):
        _convert.datum_to_proto(datum, 3)


def test_images_are_checked_when_they_are_made() -> None:
    with pytest.raises(ValueError, match="format: must be 'png' or 'jpeg'"):
        types.ImageChunk(b"x", "gif")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="data: must be the bytes"):
        types.ImageChunk(b"", "png")


@pytest.mark.parametrize(
    ("stop", "strings", "token_ids"),
    [("a", ["a"], []), (["a", "b"], ["a", "b"], []), ([1, 2], [], [1, 2]), (np.array([1]), [], [1]), ([], [], [])],
)
def test_stop_becomes_strings_or_token_ids(stop: object, strings: list[str], token_ids: list[int]) -> None:
    message = _convert.sampling_params_to_proto(types.SamplingParams(stop=stop))  # type: ignore[arg-type]
    assert (list(message.stop.strings), list(message.stop.token_ids)) == (strings, token_ids)
    assert message.HasField("stop")


def test_no_stop_stays_absent_and_a_mix_is_refused() -> None:
    assert not _convert.sampling_params_to_proto(types.SamplingParams()).HasField("stop")
    with pytest.raises(ValueError, match="stop: must be all strings or all token ids"):
        types.SamplingParams(stop=["a", 1])  # type: ignore[list-item]


def test_absent_sampling_fields_stay_absent_and_defaults_are_sent() -> None:
    message = _convert.sampling_params_to_proto(types.SamplingParams())
    assert not message.HasField("max_tokens")
    assert not message.HasField("seed")
    assert (message.temperature, message.top_p, message.top_k) == (1.0, 1.0, -1)
    with pytest.raises(ValueError, match="sampling_params: "):
        _convert.sampling_params_to_proto(types.SamplingParams(max_tokens=1.5))  # type: ignore[arg-type]


def test_all_six_adam_parameters_are_always_sent() -> None:
    message = _convert.adam_params_to_proto(types.AdamParams(learning_rate=0.0))
    assert [field.name for field, _ in message.ListFields()] == [
        field.name for field in dataclasses.fields(types.AdamParams)
    ]


def test_a_datum_arrives_as_it_was_written() -> None:
    image = types.ImageChunk(b"bytes", "png", expected_tokens=4)
    model_input = types.ModelInput([types.EncodedTextChunk([5]), image])
    message = _convert.datum_to_proto(types.Datum(model_input, {"target_tokens": [[1, 2], [3, 4]]}), 0)
    text, picture = message.model_input.chunks
    assert list(text.encoded_text.tokens) == [5]
    assert (picture.image.data, picture.image.format, picture.image.expected_tokens) == (b"bytes", "png", 4)
    np.testing.assert_array_equal(to_array(message.loss_fn_inputs["target_tokens"]), [[1, 2], [3, 4]])


def test_inputs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        types.AdamParams().learning_rate = 1.0  # type: ignore[misc]


def test_a_lora_config_travels_whole_and_says_its_targets_in_one_way() -> None:
    for config in (
        types.LoraConfig(8, 3, train_mlp=False, alpha=9, use_rslora=True),
        types.LoraConfig(8, target_modules=("q_proj", "lm_head")),
    ):
        sent = _convert.lora_config_to_proto(config)
        assert _catalog_convert.training_run(training_pb2.TrainingRun(lora_config=sent)).lora_config == config
    assert not sent.HasField("train_mlp")
    with pytest.raises(ValueError, match="target_modules: must be None"):
        types.LoraConfig(8, train_mlp=False, target_modules=["q_proj"])
    for nothing in ("q_proj", []):
        with pytest.raises(ValueError, match="list of at least one name"):
            types.LoraConfig(8, target_modules=nothing)
