# ruff: noqa: N802
"""The part of the client tests' platform that shares and lists: three checkpoints a run, two entries a page."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from typing import Any

from tests.client.toy_operations import MODEL
from tinker_proto.path import TinkerPath
from tinker_proto.v1 import checkpoint_pb2, checkpoint_pb2_grpc, session_pb2, session_pb2_grpc, training_pb2

METRICS = 5


class ToyCatalog(checkpoint_pb2_grpc.CheckpointServiceServicer, session_pb2_grpc.SessionServiceServicer, ABC):
    """Checkpoints, sessions and metrics that every run has."""

    deleted: list[str]
    public: set[str]
    lifetimes: dict[str, int | None]
    session_metadata: dict[str, dict[str, str]]
    calls: defaultdict[str, int]

    @abstractmethod
    async def _enter(self, method: str, context: Any) -> None:
        """Called when a call comes in."""

    async def GetCheckpoint(self, request: Any, context: Any) -> Any:
        await self._enter("GetCheckpoint", context)
        return self._checkpoint(request.tinker_path)

    async def ListCheckpoints(self, request: Any, context: Any) -> Any:
        await self._enter("ListCheckpoints", context)
        run = request.training_run_id or "any"
        everything = [self._checkpoint(f"tinker://{run}/weights/{index}") for index in (2, 1, 0)]
        first = int(request.page_token or 0)
        token = str(first + 2) if first + 2 < len(everything) else ""
        return checkpoint_pb2.ListCheckpointsResponse(
            checkpoints=everything[first : first + 2], next_page_token=token, total_size=len(everything)
        )

    async def DeleteCheckpoint(self, request: Any, context: Any) -> Any:
        await self._enter("DeleteCheckpoint", context)
        self.deleted.append(request.tinker_path)
        return self._checkpoint(request.tinker_path)

    async def PublishCheckpoint(self, request: Any, context: Any) -> Any:
        await self._enter("PublishCheckpoint", context)
        self.public.add(request.tinker_path)
        return self._checkpoint(request.tinker_path)

    async def UnpublishCheckpoint(self, request: Any, context: Any) -> Any:
        await self._enter("UnpublishCheckpoint", context)
        self.public.discard(request.tinker_path)
        return self._checkpoint(request.tinker_path)

    async def SetCheckpointTtl(self, request: Any, context: Any) -> Any:
        await self._enter("SetCheckpointTtl", context)
        self.lifetimes[request.tinker_path] = request.ttl_seconds if request.HasField("ttl_seconds") else None
        return self._checkpoint(request.tinker_path)

    async def GetSession(self, request: Any, context: Any) -> Any:
        await self._enter("GetSession", context)
        session = session_pb2.Session(
            session_id=request.session_id,
            user_metadata=self.session_metadata[request.session_id],
            training_run_ids=[f"{request.session_id}:train:0"],
            sampling_session_ids=[f"{request.session_id}:sample:0"],
        )
        session.end_time.FromSeconds(3)
        return session

    async def ListSessions(self, request: Any, context: Any) -> Any:
        await self._enter("ListSessions", context)
        names = sorted(self.session_metadata, reverse=True)
        first = int(request.page_token or 0)
        token = str(first + request.page_size) if first + request.page_size < len(names) else ""
        sessions = [session_pb2.Session(session_id=name) for name in names[first : first + request.page_size]]
        return session_pb2.ListSessionsResponse(sessions=sessions, next_page_token=token, total_size=len(names))

    async def ListTrainingMetrics(self, request: Any, context: Any) -> Any:
        await self._enter("ListTrainingMetrics", context)
        first = int(request.page_token or 0)
        entries = [
            training_pb2.TrainingMetrics(seq_id=seq_id, method="ForwardBackward", metrics={"loss:sum": -1.5}, tokens=7)
            for seq_id in range(first, min(first + request.page_size, METRICS))
        ]
        token = str(first + len(entries)) if first + len(entries) < METRICS else ""
        return training_pb2.ListTrainingMetricsResponse(training_metrics=entries, next_page_token=token)

    def _checkpoint(self, tinker_path: str) -> checkpoint_pb2.Checkpoint:
        path = TinkerPath.parse(tinker_path)
        checkpoint = checkpoint_pb2.Checkpoint(
            checkpoint_id=path.checkpoint_id,
            checkpoint_type=1 if path.kind == "weights" else 2,
            tinker_path=tinker_path,
            size_bytes=123,
            public=tinker_path in self.public,
            training_run_id=path.training_run_id,
            base_model=MODEL,
            lora_config=training_pb2.LoraConfig(rank=4, seed=1),
            user_metadata={"purpose": "test"},
        )
        checkpoint.time.FromJsonString("2025-01-02T03:04:05Z")
        if (seconds := self.lifetimes.get(tinker_path)) is not None:
            checkpoint.expires_at.FromSeconds(checkpoint.time.seconds + seconds)
        return checkpoint
