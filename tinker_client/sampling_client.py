"""SamplingClient: completions and scores from a base model, or from one fixed checkpoint of an adapter.

Requests have no order among each other: send as many as you like, the platform batches them.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar, Unpack

from google.protobuf.message import Message

from tinker_client import _convert, types
from tinker_client._connection import Connection
from tinker_client._download import ReportBytes
from tinker_client._merge import merge_into
from tinker_client._session import OpenSession, SubmitMethod
from tinker_client._tokenizer import get_tokenizer, get_tokenizer_async
from tinker_client._window import Window
from tinker_client.future import APIFuture
from tinker_client.sample_stream import SampleStream
from tinker_proto.v1 import sampling_pb2

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

R = TypeVar("R", bound=Message)
T = TypeVar("T")


class SampleOptions(TypedDict, total=False):
    """What `sample` can return beside the tokens; see there."""

    include_prompt_logprobs: bool
    topk_prompt_logprobs: int | None
    topk_sample_logprobs: int
    target_prompt_logprobs: Sequence[Sequence[int]] | None
    prompt_logprobs_last_n: int | None
    include_raw_logprobs: bool


class SamplingClient:
    """Samples from one fixed set of weights; made by ServiceClient, or by TrainingClient from what it has saved."""

    def __init__(
        self, connection: Connection, session: OpenSession, sampling_session: sampling_pb2.SamplingSession
    ) -> None:
        self._connection = connection
        self._session = session
        self._sampling_session_id = sampling_session.sampling_session_id
        self._base_model = sampling_session.base_model
        self._model_path = sampling_session.model_path
        self._seq_ids = itertools.count()
        self._window = Window(oldest=0)

    @classmethod
    async def open(
        cls, connection: Connection, *, model_path: str | None = None, base_model: str | None = None
    ) -> SamplingClient:
        """Opens a sampling session for exactly one of the two; on the background loop."""
        session = await connection.session()
        request = sampling_pb2.CreateSamplingSessionRequest(
            session_id=session.session_id,
            sampling_session_seq_id=next(session.sampling_session_seq_ids),
        )
        if model_path is not None:
            request.model_path = model_path
        elif base_model is not None:
            request.base_model = base_model
        method = session.transport.sampling.CreateSamplingSession
        return cls(connection, session, await session.transport.call(method, request))

    @property
    def model_path(self) -> str | None:
        """The checkpoint's full path; None for a base model."""
        return self._model_path or None

    def sample(
        self,
        prompt: types.ModelInput,
        num_samples: int,
        sampling_params: types.SamplingParams,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int | None = None,
        topk_sample_logprobs: int = 0,
        target_prompt_logprobs: Sequence[Sequence[int]] | None = None,
        prompt_logprobs_last_n: int | None = None,
        include_raw_logprobs: bool = False,
    ) -> APIFuture[types.SampleResponse]:
        """Continues `prompt` `num_samples` times; all of them share the work on the prompt.

        Args:
            prompt: at least one token.
            num_samples: how many completions; they differ from each other under one seed.
            sampling_params: how tokens are drawn.
            include_prompt_logprobs: also return each prompt token's logprob.
            topk_prompt_logprobs: also return the k likeliest tokens at each prompt position.
            topk_sample_logprobs: also return the k likeliest tokens at each generated token's position.
            target_prompt_logprobs: also return the logprobs of these token ids, as many for each prompt token, where
                that prompt token is predicted.
            prompt_logprobs_last_n: score only the last n prompt tokens; earlier entries stay empty.
            include_raw_logprobs: also return generated tokens' logprobs at temperature 1.
        """
        request = _sample_request(
            prompt,
            num_samples,
            sampling_params,
            include_prompt_logprobs=include_prompt_logprobs,
            topk_prompt_logprobs=topk_prompt_logprobs,
            topk_sample_logprobs=topk_sample_logprobs,
            target_prompt_logprobs=target_prompt_logprobs,
            prompt_logprobs_last_n=prompt_logprobs_last_n,
            include_raw_logprobs=include_raw_logprobs,
        )
        method = self._session.transport.sampling.Sample
        return self._operation(method, request, sampling_pb2.SampleResponse, _convert.sample_response)

    def sample_stream(
        self,
        prompt: types.ModelInput,
        num_samples: int,
        sampling_params: types.SamplingParams,
        **options: Unpack[SampleOptions],
    ) -> SampleStream:
        """Like `sample`, with the same options, but hands out tokens as they come: `async for token in stream`.

        A plain `for` works too. `stream.result()` is what `sample` would have returned.
        """
        request = _sample_request(prompt, num_samples, sampling_params, **options)
        self._name(request)
        slot = self._window.slot(request.seq_id, request.ByteSize())
        return SampleStream(self._connection.loop, self._session, request, slot)

    def compute_logprobs(
        self, prompt: types.ModelInput, prompt_logprobs_last_n: int | None = None
    ) -> APIFuture[list[float | None]]:
        """Returns the logprob of each prompt token at temperature 1; the first, which nothing predicts, is None.

        With `prompt_logprobs_last_n` only the last n are scored, and the others are None too.
        """
        with _convert.naming("compute_logprobs"):
            request = sampling_pb2.ComputeLogprobsRequest(
                prompt=_convert.model_input_to_proto(prompt), prompt_logprobs_last_n=prompt_logprobs_last_n
            )
        return self._operation(
            self._session.transport.sampling.ComputeLogprobs,
            request,
            sampling_pb2.ComputeLogprobsResponse,
            lambda response: _convert.prompt_logprobs(response.logprobs),
        )

    def merge_weights(self, directory: str | Path, progress: ReportBytes | None = None) -> APIFuture[Path]:
        """Writes base model and adapter as one full Hugging Face model into a directory; returns the directory.

        The platform merges in float32 and keeps the result for a day; an interrupted download goes on where it stopped
        when it is asked for again. `progress` is called with the bytes that are here and the bytes in all.
        """
        request = sampling_pb2.MergeWeightsRequest()
        self._name(request)
        cancelled = asyncio.Event()
        merging = merge_into(Path(directory), self._session, self._window, request, cancelled, progress)
        return APIFuture(self._connection.loop, merging, cancelled.set)

    async def sample_async(
        self,
        prompt: types.ModelInput,
        num_samples: int,
        sampling_params: types.SamplingParams,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int | None = None,
        topk_sample_logprobs: int = 0,
        target_prompt_logprobs: Sequence[Sequence[int]] | None = None,
        prompt_logprobs_last_n: int | None = None,
        include_raw_logprobs: bool = False,
    ) -> types.SampleResponse:
        """`sample`, awaited."""
        return await self.sample(
            prompt,
            num_samples,
            sampling_params,
            include_prompt_logprobs,
            topk_prompt_logprobs,
            topk_sample_logprobs,
            target_prompt_logprobs,
            prompt_logprobs_last_n,
            include_raw_logprobs,
        )

    async def compute_logprobs_async(
        self, prompt: types.ModelInput, prompt_logprobs_last_n: int | None = None
    ) -> list[float | None]:
        """`compute_logprobs`, awaited."""
        return await self.compute_logprobs(prompt, prompt_logprobs_last_n)

    async def merge_weights_async(self, directory: str | Path, progress: ReportBytes | None = None) -> Path:
        """`merge_weights`, awaited."""
        return await self.merge_weights(directory, progress)

    def get_base_model(self) -> str:
        """The base model's name."""
        return self._base_model

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer, as the platform uses it."""
        return get_tokenizer(self._connection, self._base_model)

    async def get_tokenizer_async(self) -> PreTrainedTokenizerBase:
        """`get_tokenizer`, awaited."""
        return await get_tokenizer_async(self._connection, self._base_model)

    def _name(
        self,
        request: sampling_pb2.SampleRequest | sampling_pb2.ComputeLogprobsRequest | sampling_pb2.MergeWeightsRequest,
    ) -> str:
        """Gives a request its seq_id, and so its operation's name."""
        request.sampling_session_id = self._sampling_session_id
        request.seq_id = next(self._seq_ids)
        return f"{request.sampling_session_id}:{request.seq_id}"

    def _operation(
        self,
        method: SubmitMethod,
        request: sampling_pb2.SampleRequest | sampling_pb2.ComputeLogprobsRequest,
        response: type[R],
        convert: Callable[[R], T],
    ) -> APIFuture[T]:
        name = self._name(request)
        cancelled = asyncio.Event()

        async def carry_out() -> T:
            return convert(
                await self._session.carry_out(
                    name,
                    method,
                    request,
                    response,
                    slot=self._window.slot(request.seq_id, request.ByteSize()),
                    cancelled=cancelled,
                )
            )

        return APIFuture(self._connection.loop, carry_out(), cancelled.set)


def _sample_request(
    prompt: types.ModelInput,
    num_samples: int,
    sampling_params: types.SamplingParams,
    **options: Unpack[SampleOptions],
) -> sampling_pb2.SampleRequest:
    targets = options.get("target_prompt_logprobs")
    with _convert.naming("sample"):
        return sampling_pb2.SampleRequest(
            prompt=_convert.model_input_to_proto(prompt),
            num_samples=num_samples,
            sampling_params=_convert.sampling_params_to_proto(sampling_params),
            include_prompt_logprobs=options.get("include_prompt_logprobs", False),
            topk_prompt_logprobs=options.get("topk_prompt_logprobs") or 0,
            topk_sample_logprobs=options.get("topk_sample_logprobs", 0),
            target_prompt_logprobs=_convert.targets_to_proto(targets) if targets is not None else None,
            prompt_logprobs_last_n=options.get("prompt_logprobs_last_n"),
            include_raw_logprobs=options.get("include_raw_logprobs", False),
        )
