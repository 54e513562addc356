"""SamplingClient: completions and scores from a base model, or from one fixed checkpoint of an adapter.

Requests have no order among each other: send as many as you like, the platform batches them.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from functools import partial
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
    """Optional arguments of `SamplingClient.sample` and `sample_stream`; `sample` describes them."""

    include_prompt_logprobs: bool
    topk_prompt_logprobs: int | None
    topk_sample_logprobs: int
    target_prompt_logprobs: Sequence[Sequence[int]] | None
    prompt_logprobs_last_n: int | None
    include_raw_logprobs: bool
    prompt_alt_tokens_k: int


class SamplingClient:
    """Samples from one fixed set of weights; created by ServiceClient, or by TrainingClient from what it saved.

    Requests have no order among each other, and many can be outstanding.
    """

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
        """Opens a sampling session, on the background loop; users call `ServiceClient.create_sampling_client`.

        Args:
            connection: the channel and its session.
            model_path: a checkpoint; exactly one of the two is given.
            base_model: a base model.

        Raises:
            APIStatusError: the platform refused; NotFoundError: there is no such checkpoint or model.
            APIConnectionError: the platform did not answer for `patience`.
        """
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

    def __repr__(self) -> str:
        return f"<SamplingClient {self._sampling_session_id} of {self._model_path or self._base_model}>"

    @property
    def model_path(self) -> str | None:
        """Full path of the checkpoint; None for a base model."""
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
        prompt_alt_tokens_k: int = 0,
    ) -> APIFuture[types.SampleResponse]:
        """Generates `num_samples` completions of a prompt, which share the work on the prompt.

        Args:
            prompt: at least one token.
            num_samples: number of completions, 1 to 1,024; they differ from each other under one seed.
            sampling_params: how tokens are drawn, and what ends a completion.
            include_prompt_logprobs: also return the log-probability of each prompt token.
            topk_prompt_logprobs: also return this many likeliest tokens at each prompt position, at most 100; None:
                none.
            topk_sample_logprobs: also return this many likeliest tokens at each generated token's position, at most
                100.
            target_prompt_logprobs: also return the log-probabilities of these token ids, integers [prompt length, K]
                with K from 1 to 1,024: row i is scored where prompt token i is predicted; row 0 is not scored. -1 asks
                for nothing and gives NaN.
            prompt_logprobs_last_n: score only the last n prompt tokens, 1 to the prompt's length; the scores before are
                None or NaN. None: all. Needs one of the prompt scores.
            include_raw_logprobs: also return the log-probability of each generated token at temperature 1.
            prompt_alt_tokens_k: also draw this many tokens in the place of each prompt token but the first, at most
                100: each on its own, at the request's temperature. Not allowed with prompt_logprobs_last_n.

        Returns:
            A future of SampleResponse: `sequences`, num_samples of them with token ids and log-probabilities (nats),
            and the requested scores of the prompt.

        Raises:
            ValueError: a value does not fit its field; raised by the call itself.
            APIStatusError: raised by the future: the platform refused the operation (BadRequestError names the field).
            RequestFailedError: raised by the future: the operation was accepted and failed.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
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
            prompt_alt_tokens_k=prompt_alt_tokens_k,
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
        """Generates like `sample`, and yields tokens as they are generated.

        Read it with `async for token in stream` or `for token in stream`.

        Args:
            prompt: as in `sample`.
            num_samples: as in `sample`.
            sampling_params: as in `sample`.
            options: the optional arguments of `sample`, by name.

        Returns:
            A SampleStream of SampledToken values; its `result` is the SampleResponse that `sample` would return.

        Raises:
            ValueError: a value does not fit its field. Reading the stream raises what the future of `sample` raises.
        """
        request = _sample_request(prompt, num_samples, sampling_params, **options)
        self._name(request)
        slot = self._window.slot(request.seq_id, request.ByteSize())
        return SampleStream(self._connection.loop, self._session, request, slot)

    def compute_logprobs(
        self, prompt: types.ModelInput, prompt_logprobs_last_n: int | None = None
    ) -> APIFuture[list[float | None]]:
        """Scores a prompt at temperature 1.

        Args:
            prompt: at least one token.
            prompt_logprobs_last_n: score only the last n tokens, 1 to the prompt's length; None: all.

        Returns:
            A future of a list with one log-probability (nats) for each prompt token; None for the first, which nothing
            predicts, and for tokens that were not scored.

        Raises:
            ValueError: a value does not fit its field; raised by the call itself.
            APIStatusError: raised by the future: the platform refused the operation (BadRequestError names the field).
            RequestFailedError: raised by the future: the operation was accepted and failed.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
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
        """Merges the adapter into the base model, in float32, and downloads the result.

        The same call resumes an interrupted download. The platform keeps the merged model for a day.

        Args:
            directory: where to write; created if it is missing.
            progress: called with (bytes here, bytes in all) on the client's own thread, so it must return soon; None:
                nothing.

        Returns:
            A future of the directory's path, with a Hugging Face model in it: safetensors, configuration and tokenizer.

        Raises:
            APIStatusError: raised by the future: the platform refused; this client samples from a base model, for one.
            RequestFailedError: raised by the future: the merge failed.
            FileExistsError: raised by the future: a file of the same name has other content; nothing was downloaded.
            TinkerError: raised by the future: a file arrived damaged.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
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
        prompt_alt_tokens_k: int = 0,
    ) -> types.SampleResponse:
        """Like `sample` in an event loop; awaiting it gives the value."""
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
            prompt_alt_tokens_k,
        )

    async def compute_logprobs_async(
        self, prompt: types.ModelInput, prompt_logprobs_last_n: int | None = None
    ) -> list[float | None]:
        """Like `compute_logprobs` in an event loop; awaiting it gives the value."""
        return await self.compute_logprobs(prompt, prompt_logprobs_last_n)

    async def merge_weights_async(self, directory: str | Path, progress: ReportBytes | None = None) -> Path:
        """Like `merge_weights` in an event loop; awaiting it gives the value."""
        return await self.merge_weights(directory, progress)

    def get_base_model(self) -> str:
        """Returns the name of the base model."""
        return self._base_model

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """Returns the base model's tokenizer, downloaded once and kept in the user's cache directory.

        Raises:
            ImportError: transformers is not installed.
            APIStatusError: the platform does not serve the base model any more.
            APIConnectionError: the platform did not answer for `patience`.
        """
        return get_tokenizer(self._connection, self._base_model)

    async def get_tokenizer_async(self) -> PreTrainedTokenizerBase:
        """Like `get_tokenizer` in an event loop; awaiting it gives the value."""
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

        state = partial(self._session.state, name)
        return APIFuture(self._connection.loop, carry_out(), cancelled.set, name=name, state=state)


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
            prompt_alt_tokens_k=options.get("prompt_alt_tokens_k", 0),
        )
