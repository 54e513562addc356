"""A merge from asking for it to the files on this machine."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tinker_client._download import ReportBytes, download
from tinker_client._session import OpenSession
from tinker_client._window import Window
from tinker_proto.v1 import checkpoint_pb2, sampling_pb2


async def merge_into(
    directory: Path,
    session: OpenSession,
    window: Window,
    request: sampling_pb2.MergeWeightsRequest,
    cancelled: asyncio.Event,
    report: ReportBytes | None,
) -> Path:
    """Carries out a merge, whose request has its seq_id, and downloads what it has written; returns the directory."""
    operation = f"{request.sampling_session_id}:{request.seq_id}"
    merged = await session.carry_out(
        operation,
        session.transport.sampling.MergeWeights,
        request,
        sampling_pb2.MergeWeightsResponse,
        slot=window.slot(request.seq_id, request.ByteSize()),
        cancelled=cancelled,
    )

    def read(name: str, offset: int) -> checkpoint_pb2.ReadFileRequest:
        return checkpoint_pb2.ReadFileRequest(operation=operation, name=name, offset=offset)

    return await download(session.transport, merged.files, directory, read, report)
