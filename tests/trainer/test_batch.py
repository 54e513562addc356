"""From data to tensors: defaults, masks, ragged lengths and differing numbers of targets."""

from __future__ import annotations

import numpy as np
import torch

from services.core.losses import LOSSES
from services.trainer.convert import read_example, to_pass_job
from services.trainer.engine.batch import Batch
from testing.training_data import datum
from tinker_proto.tensor import from_array
from tinker_proto.v1 import data_pb2, training_pb2

CPU = torch.device("cpu")
CROSS_ENTROPY = LOSSES["cross_entropy"]
IMPORTANCE = LOSSES["importance_sampling"]


def test_absent_weights_are_ones() -> None:
    example = read_example(datum([5, 6, 7], [6, 7, 8]), CROSS_ENTROPY)
    assert example.tokens.tolist() == [5, 6, 7]
    assert example.targets.tolist() == [[6], [7], [8]]
    assert example.inputs["weights"].tolist() == [[1], [1], [1]]
    assert example.shape == (3,)


def test_mask_multiplies_weights_or_advantages_and_is_gone() -> None:
    masked = read_example(datum([5, 6], [6, 7], weights=[2, 3], mask=[0, 1]), CROSS_ENTROPY)
    assert masked.inputs.keys() == {"weights"}
    assert masked.inputs["weights"].tolist() == [[0], [3]]
    alone = read_example(datum([5, 6], [6, 7], mask=[0, 1]), CROSS_ENTROPY)
    assert alone.inputs["weights"].tolist() == [[0], [1]]
    policy = read_example(datum([5, 6], [6, 7], logprobs=[-1, -2], advantages=[4, 5], mask=[1, 0]), IMPORTANCE)
    assert policy.inputs["advantages"].tolist() == [[4], [0]]
    assert policy.inputs["logprobs"].tolist() == [[-1], [-2]]


def test_absent_optional_inputs_are_ones_and_the_mask_of_dro_stays() -> None:
    policy = {"logprobs": [-1, -2], "advantages": [4, 5]}
    sequence = read_example(datum([5, 6], [6, 7], **policy, mask=[1, 0]), LOSSES["gspo"])
    assert sequence.inputs["sequence_ratio_mask"].tolist() == [[1], [1]]
    assert sequence.inputs["advantages"].tolist() == [[4], [0]]
    regularised = read_example(datum([5, 6], [6, 7], **policy, mask=[1, 0]), LOSSES["dro"])
    assert regularised.inputs["mask"].tolist() == [[1], [0]]
    assert regularised.inputs["advantages"].tolist() == [[4], [5]]


def test_integers_are_the_same_numbers() -> None:
    integers = datum([5, 6], [6, 7])
    integers.loss_fn_inputs["weights"].CopyFrom(from_array(np.array([3, -1])))
    whole = read_example(integers, CROSS_ENTROPY)
    assert whole.inputs["weights"].tolist() == [[3], [-1]]
    assert whole.inputs["weights"].dtype == np.float32


def test_thresholds_of_tokens_are_inputs_of_every_datum_once_one_has_them() -> None:
    policy = {"logprobs": [-1, -2], "advantages": [4, 5]}
    request = training_pb2.ForwardRequest(loss_fn="ppo", loss_fn_config={"clip_high_threshold": 1.5})
    request.data.extend([datum([5, 6], [6, 7], **policy), datum([5, 6], [6, 7], **policy, clip_low_threshold=[0.5, 0])])
    first, second = to_pass_job(request).examples
    assert first.inputs["clip_low_threshold"].tolist() == [[np.float32(0.8)]] * 2
    assert second.inputs["clip_low_threshold"].tolist() == [[0.5], [0]]
    assert second.inputs["clip_high_threshold"].tolist() == [[1.5], [1.5]]
    request.data.pop()
    assert to_pass_job(request).examples[0].inputs.keys() == {"logprobs", "advantages"}


def test_sparse_weights_are_those_of_the_dense_matrix() -> None:
    dense = np.array([[0, 0.5, 0], [0, 0, 0], [2, 0, -1]], np.float32)
    sparse = datum([5, 6, 7], [[3, 4, 5]] * 3)
    sparse.loss_fn_inputs["weights"].CopyFrom(
        data_pb2.Tensor(
            dtype=data_pb2.DATA_TYPE_FLOAT32,
            shape=[3, 3],
            csr=data_pb2.SparseCsr(
                values=np.array([0.5, 2, -1], "<f4").tobytes(),
                crow_indices=np.array([0, 1, 1, 3], "<i8").tobytes(),
                col_indices=np.array([1, 0, 2], "<i8").tobytes(),
            ),
        )
    )
    assert np.array_equal(read_example(sparse, CROSS_ENTROPY).inputs["weights"], dense)


def test_chunks_are_read_in_order() -> None:
    whole = datum([5], [9, 9, 9])
    for tokens in ([6], [7]):
        whole.model_input.chunks.add(encoded_text=data_pb2.EncodedTextChunk(tokens=tokens))
    assert read_example(whole, CROSS_ENTROPY).tokens.tolist() == [5, 6, 7]


def test_a_batch_pads_targets_but_not_tokens() -> None:
    narrow = read_example(datum([5, 6], [6, 7], weights=[1, 2]), CROSS_ENTROPY)
    wide = read_example(datum([8], [[3, 4, 5]], weights=[[0.5, 0.25, 0.125]]), CROSS_ENTROPY)
    batch = Batch.of([narrow, wide], CPU)
    assert batch.lengths == (2, 1)
    assert batch.tokens.tolist() == [5, 6, 8]
    assert batch.targets.tolist() == [[6, 0, 0], [7, 0, 0], [3, 4, 5]]
    assert batch.inputs["weights"].tolist() == [[1, 0, 0], [2, 0, 0], [0.5, 0.25, 0.125]]
