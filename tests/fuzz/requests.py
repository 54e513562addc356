"""Valid requests of every method, about what a tenant has."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests.gateway.caller import BASE, Caller, datum, forward_backward, tokens
from tinker_proto.v1 import (
    capability_pb2,
    checkpoint_pb2,
    operation_pb2,
    sampling_pb2,
    session_pb2,
    training_pb2,
)

_FILE = b"{}"


@dataclass(frozen=True)
class Belongings:
    """Names of what a tenant has."""

    session: str
    run: str
    sampling: str
    state: str
    """A training checkpoint."""

    weights: str
    """A sampler's."""

    operation: str

    @property
    def names(self) -> Sequence[str]:
        """All of them."""
        return (self.session, self.run, self.sampling, self.state, self.weights, self.operation)


def methods() -> Mapping[str, MethodDescriptor]:
    """Every method that a gateway serves, by its path."""
    ours = (capability_pb2, checkpoint_pb2, operation_pb2, sampling_pb2, session_pb2, training_pb2)
    return {
        f"/{service.full_name}/{method.name}": method
        for module in (*ours, health_pb2, reflection_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


async def acquire(caller: Caller) -> Belongings:
    """Has a platform make one of everything."""
    run = await caller.run()
    session = run.partition(":")[0]
    await caller.training.ForwardBackward(forward_backward(run))
    state = training_pb2.SaveStateRequest(training_run_id=run, name="state")
    weights = training_pb2.SaveWeightsForSamplerRequest(training_run_id=run, name="weights")
    await caller.training.SaveState(state)
    last = (await caller.training.SaveWeightsForSampler(weights)).name
    watch = operation_pb2.WatchOperationsRequest(session_id=session, pending=[last])
    async for response in caller.operations.WatchOperations(watch):
        if any(operation.name == last for operation in response.operations):
            break
    path = f"tinker://{run}/sampler_weights/weights"
    opened = sampling_pb2.CreateSamplingSessionRequest(session_id=session, sampling_session_seq_id=0, model_path=path)
    sampling = (await caller.sampling.CreateSamplingSession(opened)).sampling_session_id
    return Belongings(session, run, sampling, f"tinker://{run}/weights/state", path, f"{run}:1")


def valid_requests(own: Belongings, number: int) -> Mapping[str, Sequence[Message]]:
    """By method name, one request, or all messages of a stream; `number` is for what may be made once."""
    session, run = {"session_id": own.session}, {"training_run_id": own.run}
    path, page = {"tinker_path": own.weights}, {"page_size": 3, "page_token": ""}
    labels = {"user_metadata": {"lamp": "lit"}}
    return {name: [request] for name, request in _training(own, number, labels).items()} | {
        "Check": [health_pb2.HealthCheckRequest(service="tinker.v1.TrainingService")],
        "List": [health_pb2.HealthListRequest()],
        "Watch": [health_pb2.HealthCheckRequest(service="tinker.v1.TrainingService")],
        "ServerReflectionInfo": [
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="tinker.v1.Datum"),
            reflection_pb2.ServerReflectionRequest(list_services=""),
        ],
        "GetServerCapabilities": [capability_pb2.GetServerCapabilitiesRequest()],
        "GetTokenizer": [capability_pb2.GetTokenizerRequest(base_model=BASE)],
        "GetCheckpoint": [checkpoint_pb2.GetCheckpointRequest(**path)],
        "ListCheckpoints": [checkpoint_pb2.ListCheckpointsRequest(**run, **page)],
        "DeleteCheckpoint": [checkpoint_pb2.DeleteCheckpointRequest(tinker_path=own.state)],
        "PublishCheckpoint": [checkpoint_pb2.PublishCheckpointRequest(**path)],
        "UnpublishCheckpoint": [checkpoint_pb2.UnpublishCheckpointRequest(**path)],
        "SetCheckpointTtl": [checkpoint_pb2.SetCheckpointTtlRequest(**path, ttl_seconds=3600)],
        "ListCheckpointFiles": [checkpoint_pb2.ListCheckpointFilesRequest(**path)],
        "ReadFile": [checkpoint_pb2.ReadFileRequest(**path, name="adapter_config.json", offset=1)],
        "UploadFile": [
            checkpoint_pb2.UploadFileRequest(file=_file()),
            checkpoint_pb2.UploadFileRequest(content=_FILE),
        ],
        "ImportCheckpoint": [
            checkpoint_pb2.ImportCheckpointRequest(
                **session, training_run_seq_id=number, base_model=BASE, name="in", ttl_seconds=3600, **labels
            )
        ],
        "GetOperation": [operation_pb2.GetOperationRequest(name=own.operation)],
        "ReadResponse": [operation_pb2.ReadResponseRequest(name=own.operation, offset=1)],
        "CancelOperation": [operation_pb2.CancelOperationRequest(name=own.operation)],
        "WatchOperations": [operation_pb2.WatchOperationsRequest(**session, pending=[own.operation])],
        "CreateSession": [session_pb2.CreateSessionRequest(**labels)],
        "GetSession": [session_pb2.GetSessionRequest(**session)],
        "ListSessions": [session_pb2.ListSessionsRequest(**page)],
        "HeartbeatSession": [session_pb2.HeartbeatSessionRequest(**session)],
        "EndSession": [session_pb2.EndSessionRequest(**session)],
        **{name: [request] for name, request in _sampling(own, number).items()},
    }


def _training(own: Belongings, number: int, labels: Mapping[str, Mapping[str, str]]) -> dict[str, Message]:
    run, page = {"training_run_id": own.run}, {"page_size": 3, "page_token": ""}
    new = {"session_id": own.session, "training_run_seq_id": number}
    config = training_pb2.LoraConfig(rank=2, seed=5, train_mlp=True, train_attn=True, train_unembed=True, alpha=8)
    adam = training_pb2.AdamParams(learning_rate=1e-4, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
    loss = datum(weights=np.ones(4, dtype=np.float32))
    return {
        "CreateTrainingRun": training_pb2.CreateTrainingRunRequest(
            **new, base_model=BASE, lora_config=config, **labels
        ),
        "CreateTrainingRunFromCheckpoint": training_pb2.CreateTrainingRunFromCheckpointRequest(
            **new, path=own.state, restore_optimizer=True, **labels
        ),
        "GetTrainingRun": training_pb2.GetTrainingRunRequest(**run),
        "ListTrainingRuns": training_pb2.ListTrainingRunsRequest(**page),
        "ListTrainingMetrics": training_pb2.ListTrainingMetricsRequest(**run, **page),
        "ForwardBackward": forward_backward(own.run, data=[loss, loss]),
        "Forward": training_pb2.ForwardRequest(**run, data=[loss], loss_fn="cross_entropy"),
        "OptimStep": training_pb2.OptimStepRequest(**run, adam_params=adam),
        "SaveState": training_pb2.SaveStateRequest(**run, name="state", overwrite=True, ttl_seconds=3600, **labels),
        "LoadState": training_pb2.LoadStateRequest(**run, path=own.state, restore_optimizer=True),
        "SaveWeightsForSampler": training_pb2.SaveWeightsForSamplerRequest(**run, name=f"w{number}", **labels),
    }


def _sampling(own: Belongings, number: int) -> dict[str, Message]:
    sampling = {"sampling_session_id": own.sampling}
    params = sampling_pb2.SamplingParams(max_tokens=4, seed=3, temperature=0.7, top_k=20, top_p=0.9)
    params.stop.token_ids.extend([2, 7])
    sample = sampling_pb2.SampleRequest(
        **sampling, prompt=tokens(5, 6, 7), num_samples=2, sampling_params=params, topk_prompt_logprobs=2
    )
    return {
        "CreateSamplingSession": sampling_pb2.CreateSamplingSessionRequest(
            session_id=own.session, sampling_session_seq_id=number, base_model=BASE
        ),
        "GetSamplingSession": sampling_pb2.GetSamplingSessionRequest(**sampling),
        "Sample": sample,
        "SampleStream": sampling_pb2.SampleStreamRequest(request=sample),
        "ComputeLogprobs": sampling_pb2.ComputeLogprobsRequest(
            **sampling, prompt=tokens(5, 6), prompt_logprobs_last_n=1
        ),
        "MergeWeights": sampling_pb2.MergeWeightsRequest(**sampling),
    }


def _file() -> checkpoint_pb2.File:
    return checkpoint_pb2.File(
        name="adapter_config.json", size_bytes=len(_FILE), sha256=hashlib.sha256(_FILE).hexdigest()
    )
