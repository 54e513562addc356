"""Operations as the contract promises them: names, idempotent resends, strict order, one result.

The toy model gives target token t the log-probability -(t + 1) / 10.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from google.protobuf.message import Message

from services.core.errors import AlreadyExistsError, NotFoundError, PlatformError
from tinker_proto.tensor import from_array, to_array
from tinker_proto.v1 import operation_pb2, sampling_pb2, training_pb2

MODEL = "toy/model"
PARKED = operation_pb2.OPERATION_STATE_PARKED


class Operations:
    """Operation records, and the order in which a run's are carried out."""

    def __init__(self) -> None:
        self.records: dict[str, operation_pb2.Operation] = {}
        self.requests: dict[str, Message] = {}
        self.carried_out: list[str] = []
        self.next_seq: defaultdict[str, int] = defaultdict(int)
        self.watchers: set[asyncio.Queue[operation_pb2.Operation | None]] = set()
        self.held: set[str] = set()
        self.hold_all = False

    def accept(self, scope: str, seq_id: int, method: str, request: Message) -> operation_pb2.Operation:
        name = f"{scope}:{seq_id}"
        known = self.records.get(name)
        if known is not None:
            if self.requests[name] != request:
                raise AlreadyExistsError(f"operation {name} exists with another request", reason="SEQ_ID_USED")
            return known
        self.records[name] = operation_pb2.Operation(name=name, method=method, state=PARKED)
        self.requests[name] = request
        if ":train:" in scope:
            self.advance(scope)
        else:
            self._carry_out(name)
        return self.records[name]

    def refuse(self, scope: str, seq_id: int, method: str, request: Message, error: PlatformError) -> None:
        name = f"{scope}:{seq_id}"
        if name not in self.records:
            self.requests[name] = request
            self.records[name] = operation_pb2.Operation(
                name=name, method=method, done=True, error=error.to_operation_error()
            )
            self._announce(self.records[name])
            self.advance(scope)

    def advance(self, scope: str) -> None:
        """Carries out, in order, whatever of a run has its turn."""
        while (name := f"{scope}:{self.next_seq[scope]}") in self.records and self._carry_out(name):
            self.next_seq[scope] += 1

    def release(self) -> None:
        self.hold_all = False
        self.held.clear()
        for name in list(self.records):
            if ":train:" in name:
                self.advance(name.rpartition(":")[0])
            else:
                self._carry_out(name)

    def cancel(self, name: str) -> operation_pb2.Operation:
        operation = self.records[name]
        if not operation.done:
            operation.error.code, operation.error.message = 1, f"operation {name} was cancelled before it began"
            operation.error.reason = "CANCELLED"
            self._finish(operation)
            self.advance(name.rpartition(":")[0])
        return operation

    def _carry_out(self, name: str) -> bool:
        operation = self.records[name]
        if operation.done:
            return True
        if self.hold_all or name in self.held:
            return False
        self.carried_out.append(name)
        try:
            operation.response.Pack(ANSWERS[operation.method](name.rpartition(":")[0], self.requests[name]))
        except PlatformError as error:
            operation.error.CopyFrom(error.to_operation_error())
        self._finish(operation)
        return True

    def _finish(self, operation: operation_pb2.Operation) -> None:
        operation.done = True
        self._announce(operation)

    def _announce(self, operation: operation_pb2.Operation) -> None:
        for watcher in self.watchers:
            watcher.put_nowait(operation)


def create_run(run: str, request: Any) -> Message:
    created = training_pb2.TrainingRun(
        training_run_id=run,
        base_model=request.base_model,
        lora_config=request.lora_config,
        user_metadata=request.user_metadata,
    )
    return training_pb2.CreateTrainingRunResponse(training_run=created)


def create_run_from_checkpoint(run: str, request: Any) -> Message:
    check_there(request.path)
    config = training_pb2.LoraConfig(rank=4)
    created = training_pb2.TrainingRun(training_run_id=run, base_model=MODEL, lora_config=config)
    return training_pb2.CreateTrainingRunResponse(training_run=created)


def forward_backward(run: str, request: Any) -> training_pb2.ForwardBackwardResponse:
    response = training_pb2.ForwardBackwardResponse()
    loss = 0.0
    for datum in request.data:
        logprobs = -(to_array(datum.loss_fn_inputs["target_tokens"]).astype(np.float32) + 1) / 10
        response.loss_fn_outputs.add().tensors["logprobs"].CopyFrom(from_array(logprobs))
        if "weights" in datum.loss_fn_inputs:
            loss -= float((to_array(datum.loss_fn_inputs["weights"]) * logprobs).sum())
    response.metrics["loss:sum"] = loss
    response.metrics["data:mean"] = len(request.data)
    return response


def forward(run: str, request: Any) -> Message:
    return training_pb2.ForwardResponse.FromString(forward_backward(run, request).SerializeToString())


def optim_step(run: str, request: Any) -> Message:
    return training_pb2.OptimStepResponse(metrics={"grad_norm:mean": request.adam_params.learning_rate})


def save_state(run: str, request: Any) -> Message:
    return training_pb2.SaveStateResponse(path=f"tinker://{run}/weights/{request.name}")


def load_state(run: str, request: Any) -> Message:
    check_there(request.path)
    return training_pb2.LoadStateResponse(path=request.path)


def save_weights_for_sampler(run: str, request: Any) -> Message:
    name = request.name or f"seq-{request.seq_id}"
    return training_pb2.SaveWeightsForSamplerResponse(path=f"tinker://{run}/sampler_weights/{name}")


def sample(sampling_session: str, request: Any) -> Message:
    """Repeats the prompt, then the index of the sample."""
    prompt = [token for chunk in request.prompt.chunks for token in chunk.encoded_text.tokens]
    response = sampling_pb2.SampleResponse()
    for index in range(request.num_samples or 1):
        tokens = [*prompt, index]
        response.sequences.add(tokens=tokens, logprobs=[-0.5] * len(tokens), stop_reason=sampling_pb2.STOP_REASON_STOP)
    if request.include_prompt_logprobs:
        response.prompt_logprobs.extend([float("nan"), *[-0.25] * (len(prompt) - 1)])
    for position in range(len(prompt) if request.topk_prompt_logprobs else 0):
        ids = range(request.topk_prompt_logprobs) if position else []
        response.topk_prompt_logprobs.add(token_ids=ids, logprobs=[-0.5 for _ in ids])
    return response


def compute_logprobs(sampling_session: str, request: Any) -> Message:
    count = sum(len(chunk.encoded_text.tokens) for chunk in request.prompt.chunks)
    return sampling_pb2.ComputeLogprobsResponse(logprobs=[float("nan"), *[-0.25] * (count - 1)])


def check_there(path: str) -> None:
    if "missing" in path:
        raise NotFoundError(f"there is no checkpoint {path}", reason="CHECKPOINT_NOT_FOUND")


ANSWERS: dict[str, Callable[[str, Any], Message]] = {
    "CreateTrainingRun": create_run,
    "CreateTrainingRunFromCheckpoint": create_run_from_checkpoint,
    "Forward": forward,
    "ForwardBackward": forward_backward,
    "OptimStep": optim_step,
    "SaveState": save_state,
    "LoadState": load_state,
    "SaveWeightsForSampler": save_weights_for_sampler,
    "Sample": sample,
    "ComputeLogprobs": compute_logprobs,
}
