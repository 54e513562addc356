"""TrainingClient: one LoRA adapter in training.

Every operation returns an APIFuture at once and gets its position in the run's order at the call; results may be read
in any order, or not at all. The `_async` twins of operations return that same future (`await` it again for the result);
those of methods that return a value, return the value.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tinker_client import _catalog_convert, _convert, types
from tinker_client._connection import Connection
from tinker_client._loss_calls import compute_custom_loss, compute_loss
from tinker_client._operation_order import (
    FORWARD,
    FORWARD_BACKWARD,
    LOAD_STATE,
    OPTIM_STEP,
    SAVE_STATE,
    SAVE_WEIGHTS_FOR_SAMPLER,
    OperationKind,
    OperationOrder,
)
from tinker_client._session import OpenSession
from tinker_client._tokenizer import get_tokenizer, get_tokenizer_async
from tinker_client.future import APIFuture
from tinker_client.sampling_client import SamplingClient
from tinker_proto.v1 import training_pb2

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tinker_client._torch import CustomLoss

T = TypeVar("T")


class TrainingClient:
    """Trains one adapter; created by ServiceClient.

    Operations are carried out in the order of the calls; after one that failed, the next one is carried out.
    """

    def __init__(self, connection: Connection, session: OpenSession, training_run: training_pb2.TrainingRun) -> None:
        self._connection = connection
        self._session = session
        self._info = _catalog_convert.info(training_run)
        self._order = OperationOrder(connection.loop, session, training_run.training_run_id)

    def __repr__(self) -> str:
        return f"<TrainingClient {self.model_id} on {self._info.model_data.model_name}>"

    @property
    def model_id(self) -> str:
        """Id of the training run."""
        return self._info.model_id

    def forward(
        self, data: Sequence[types.Datum], loss_fn: str, loss_fn_config: Mapping[str, float] | None = None
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """Computes a loss and log-probabilities; the accumulated gradient does not change.

        Args:
            data: at least one Datum. More than 1,024 of them or 4 MB are sent as several operations, whose outputs are
                joined.
            loss_fn: "cross_entropy", "importance_sampling", "ppo", "cispo", "dro", "gspo" or "stable_reinforce";
                docs/numerics.md has the formulas, and `get_server_capabilities` lists what the platform has.
            loss_fn_config: options of that loss, e.g. {"clip_low_threshold": 0.8}; unknown names are refused. None:
                defaults.

        Returns:
            A future of ForwardBackwardOutput: loss_fn_outputs[i]["logprobs"], float32 of data[i]'s target_tokens'
            shape; metrics "loss:sum" (a sum over tokens and data, in nats) and, for policy losses, "ratio:mean",
            "ratio:max", "kl_k1:mean", "kl_k3:mean" and, for those that clip, "clip_low_fraction:mean" and
            "clip_high_fraction:mean".

        Raises:
            ValueError: `data` is empty, or a value does not fit its field; raised by the call itself.
            APIStatusError: raised by the future: the platform refused the operation (BadRequestError names the field).
            RequestFailedError: raised by the future: the operation was accepted and failed.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
        """
        return compute_loss(self._order, FORWARD, training_pb2.ForwardRequest, data, loss_fn, loss_fn_config)

    def forward_backward(
        self, data: Sequence[types.Datum], loss_fn: str, loss_fn_config: Mapping[str, float] | None = None
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """Computes a loss and adds its gradient to the accumulated one, which `optim_step` applies.

        Args:
            data: at least one Datum. More than 1,024 of them or 4 MB are sent as several operations, whose outputs are
                joined.
            loss_fn: "cross_entropy", "importance_sampling", "ppo", "cispo", "dro", "gspo" or "stable_reinforce";
                docs/numerics.md has the formulas, and `get_server_capabilities` lists what the platform has.
            loss_fn_config: options of that loss, e.g. {"clip_low_threshold": 0.8}; unknown names are refused. None:
                defaults.

        Returns:
            A future of ForwardBackwardOutput: loss_fn_outputs[i]["logprobs"], float32 of data[i]'s target_tokens'
            shape; metrics "loss:sum" (a sum over tokens and data, in nats) and, for policy losses, "ratio:mean",
            "ratio:max", "kl_k1:mean", "kl_k3:mean" and, for those that clip, "clip_low_fraction:mean" and
            "clip_high_fraction:mean".

        Raises:
            ValueError: `data` is empty, or a value does not fit its field; raised by the call itself.
            APIStatusError: raised by the future: the platform refused the operation (BadRequestError names the field).
            RequestFailedError: raised by the future: the operation was accepted and failed.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
        """
        request = training_pb2.ForwardBackwardRequest
        return compute_loss(self._order, FORWARD_BACKWARD, request, data, loss_fn, loss_fn_config)

    def forward_backward_custom(
        self, data: Sequence[types.Datum], loss_fn: CustomLoss[types.Datum]
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """Computes a loss written in torch and adds its gradient to the run's accumulated gradient.

        Costs one more forward pass than `forward_backward`: the log-probabilities come here, `loss_fn` is
        differentiated here, and its derivative goes back. Needs torch on this machine.

        Args:
            data: at least one Datum with "target_tokens" ([N] or [N, K]); its other inputs are for `loss_fn` alone.
            loss_fn: called as `loss_fn(data, logprobs)` in a thread of its own, with one float32 tensor for each datum,
                of target_tokens' shape. It returns (loss, metrics): a tensor of one element, and a dict of numbers.

        Returns:
            A future of ForwardBackwardOutput: loss_fn_outputs[i]["logprobs"] as in `forward_backward`; metrics of the
            platform, those that `loss_fn` returned, and "loss:sum", the loss that it returned.

        Raises:
            ValueError: `data` is empty or has no target_tokens (raised by the call itself); or the loss or its gradient
                is not finite, or does not depend on the logprobs (raised by the future).
            TypeError: raised by the future: `loss_fn` did not return a loss and metrics.
            APIStatusError: raised by the future: the platform refused an operation (BadRequestError names the field).
            RequestFailedError: raised by the future: an operation failed, or was cancelled.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
        """
        return compute_custom_loss(self._order, data, loss_fn)

    def optim_step(self, adam_params: types.AdamParams) -> APIFuture[types.OptimStepResponse]:
        """Applies one AdamW step with the accumulated gradient, and clears the gradient.

        Without an accumulated gradient it counts as zero. A step whose gradient norm is not finite fails and changes
        nothing.

        Args:
            adam_params: parameters of this step; all six are sent.

        Returns:
            A future of OptimStepResponse: metrics "grad_norm:mean", the global norm before clipping.

        Raises:
            ValueError: a parameter is not a number; raised by the call itself.
            APIStatusError: raised by the future: the platform refused the operation (BadRequestError names the field).
            RequestFailedError: raised by the future: the operation was accepted and failed.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
        """
        request = training_pb2.OptimStepRequest(adam_params=_convert.adam_params_to_proto(adam_params))
        return self._operation(OPTIM_STEP, request, lambda reply: types.OptimStepResponse(dict(reply.metrics)))

    def save_state(
        self,
        name: str,
        ttl_seconds: int | None = None,
        overwrite: bool = False,
        user_metadata: Mapping[str, str] | None = None,
    ) -> APIFuture[types.SaveWeightsResponse]:
        """Saves adapter, optimizer moments, step and accumulated gradient as a training checkpoint.

        Args:
            name: 1 to 200 characters of [A-Za-z0-9._-], not "." or "..".
            ttl_seconds: seconds until the platform deletes the checkpoint, 3,600 to 315,360,000 (ten years); None:
                never.
            overwrite: replace a checkpoint of this name, its labels and expiry included; otherwise a name in use is an
                error.
            user_metadata: labels, at most 64 of at most 1,024 characters.

        Returns:
            A future of SaveWeightsResponse: the checkpoint's path, `tinker://<training_run_id>/weights/<name>`.

        Raises:
            ValueError: a value does not fit its field; raised by the call itself.
            APIStatusError: raised by the future: the platform refused the operation (BadRequestError names the field).
            RequestFailedError: raised by the future: the operation was accepted and failed.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
        """
        with _convert.naming("name"):
            request = training_pb2.SaveStateRequest(name=name, overwrite=overwrite)
        _convert.set_lifetime_and_labels(request, ttl_seconds, user_metadata)
        return self._operation(SAVE_STATE, request, lambda reply: types.SaveWeightsResponse(reply.path))

    def load_state(self, path: str) -> APIFuture[types.LoadWeightsResponse]:
        """Loads a checkpoint's weights; optimizer and accumulated gradient are reset.

        Args:
            path: `tinker://<training_run_id>/weights/<name>`, of the same base model, rank and adapted linears as this
                run.

        Returns:
            A future of LoadWeightsResponse: the path that was loaded.

        Raises:
            ValueError: `path` is not text; raised by the call itself.
            CodedError: raised by the future. Code NOT_FOUND: there is no such checkpoint; INVALID_ARGUMENT or
                FAILED_PRECONDITION: it does not fit this run. APIStatusError if the call was refused,
                    RequestFailedError if the
                operation failed.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
        """
        return self._load(path, restore_optimizer=False)

    def load_state_with_optimizer(self, path: str) -> APIFuture[types.LoadWeightsResponse]:
        """Loads a checkpoint's weights, optimizer moments, step and accumulated gradient.

        Args:
            path: `tinker://<training_run_id>/weights/<name>`, of the same base model, rank and adapted linears as this
                run.

        Returns:
            A future of LoadWeightsResponse: the path that was loaded.

        Raises:
            ValueError: `path` is not text; raised by the call itself.
            CodedError: raised by the future. Code NOT_FOUND: there is no such checkpoint; INVALID_ARGUMENT or
                FAILED_PRECONDITION: it does not fit this run. APIStatusError if the call was refused,
                    RequestFailedError if the
                operation failed.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
        """
        return self._load(path, restore_optimizer=True)

    def save_weights_for_sampler(
        self, name: str, ttl_seconds: int | None = None, user_metadata: Mapping[str, str] | None = None
    ) -> APIFuture[types.SaveWeightsForSamplerResponse]:
        """Saves the adapter alone as a sampler checkpoint, which never changes and cannot be trained on.

        Args:
            name: 1 to 200 characters of [A-Za-z0-9._-], not "." or ".."; empty: `seq-<seq_id>` of this operation.
            ttl_seconds: seconds until the platform deletes the checkpoint, 3,600 to 315,360,000 (ten years); None:
                never.
            user_metadata: labels, at most 64 of at most 1,024 characters.

        Returns:
            A future of SaveWeightsForSamplerResponse: the path, `tinker://<training_run_id>/sampler_weights/<name>`.

        Raises:
            ValueError: a value does not fit its field; raised by the call itself.
            APIStatusError: raised by the future: the platform refused the operation (BadRequestError names the field).
            RequestFailedError: raised by the future: the operation was accepted and failed.
            APIConnectionError: raised by the future: the platform did not answer for `patience`.
        """
        with _convert.naming("name"):
            request = training_pb2.SaveWeightsForSamplerRequest(name=name)
        _convert.set_lifetime_and_labels(request, ttl_seconds, user_metadata)
        return self._save_for_sampler(request)

    def save_weights_and_get_sampling_client(self, name: str | None = None) -> SamplingClient:
        """Saves a sampler checkpoint, waits for it, and returns a client that samples from it.

        Args:
            name: as in `save_weights_for_sampler`; None: the weights are for this client alone and no checkpoint. They
                are removed ten minutes after their last use, except the newest four of the run while this session
                lives.

        Returns:
            A SamplingClient of the saved weights; later training does not change them.

        Raises:
            ValueError: `name` is not text.
            APIStatusError: the platform refused the save or the sampling session.
            RequestFailedError: the save failed.
            APIConnectionError: the platform did not answer for `patience`.
        """
        return self._sampling_client(name).result()

    def get_info(self) -> types.GetInfoResponse:
        """Returns base model and adapter shape of the run, known since its creation; sends nothing.

        Raises:
            Nothing.
        """
        return self._info

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """Returns the base model's tokenizer, downloaded once and kept in the user's cache directory.

        Raises:
            ImportError: transformers is not installed.
            APIStatusError: the platform does not serve the base model any more.
            APIConnectionError: the platform did not answer for `patience`.
        """
        return get_tokenizer(self._connection, self._info.model_name)

    async def forward_async(
        self, data: Sequence[types.Datum], loss_fn: str, loss_fn_config: Mapping[str, float] | None = None
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """Like `forward` in an event loop; returns its future: await that for the result."""
        return self.forward(data, loss_fn, loss_fn_config)

    async def forward_backward_async(
        self, data: Sequence[types.Datum], loss_fn: str, loss_fn_config: Mapping[str, float] | None = None
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """Like `forward_backward` in an event loop; returns its future: await that for the result."""
        return self.forward_backward(data, loss_fn, loss_fn_config)

    async def forward_backward_custom_async(
        self, data: Sequence[types.Datum], loss_fn: CustomLoss[types.Datum]
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """Like `forward_backward_custom` in an event loop; returns its future: await that for the result."""
        return self.forward_backward_custom(data, loss_fn)

    async def optim_step_async(self, adam_params: types.AdamParams) -> APIFuture[types.OptimStepResponse]:
        """Like `optim_step` in an event loop; returns its future: await that for the result."""
        return self.optim_step(adam_params)

    async def save_state_async(
        self,
        name: str,
        ttl_seconds: int | None = None,
        overwrite: bool = False,
        user_metadata: Mapping[str, str] | None = None,
    ) -> APIFuture[types.SaveWeightsResponse]:
        """Like `save_state` in an event loop; returns its future: await that for the result."""
        return self.save_state(name, ttl_seconds, overwrite, user_metadata)

    async def load_state_async(self, path: str) -> APIFuture[types.LoadWeightsResponse]:
        """Like `load_state` in an event loop; returns its future: await that for the result."""
        return self.load_state(path)

    async def load_state_with_optimizer_async(self, path: str) -> APIFuture[types.LoadWeightsResponse]:
        """Like `load_state_with_optimizer` in an event loop; returns its future: await that for the result."""
        return self.load_state_with_optimizer(path)

    async def save_weights_for_sampler_async(
        self, name: str, ttl_seconds: int | None = None, user_metadata: Mapping[str, str] | None = None
    ) -> APIFuture[types.SaveWeightsForSamplerResponse]:
        """Like `save_weights_for_sampler` in an event loop; returns its future: await that for the result."""
        return self.save_weights_for_sampler(name, ttl_seconds, user_metadata)

    async def save_weights_and_get_sampling_client_async(self, name: str | None = None) -> SamplingClient:
        """Like `save_weights_and_get_sampling_client` in an event loop; awaiting it gives the value."""
        return await self._sampling_client(name)

    async def get_info_async(self) -> types.GetInfoResponse:
        """Like `get_info` in an event loop; awaiting it gives the value."""
        return self.get_info()

    async def get_tokenizer_async(self) -> PreTrainedTokenizerBase:
        """Like `get_tokenizer` in an event loop; awaiting it gives the value."""
        return await get_tokenizer_async(self._connection, self._info.model_name)

    def _load(self, path: str, *, restore_optimizer: bool) -> APIFuture[types.LoadWeightsResponse]:
        with _convert.naming("path"):
            request = training_pb2.LoadStateRequest(path=path, restore_optimizer=restore_optimizer)
        return self._operation(LOAD_STATE, request, lambda reply: types.LoadWeightsResponse(reply.path))

    def _save_for_sampler(
        self, request: training_pb2.SaveWeightsForSamplerRequest
    ) -> APIFuture[types.SaveWeightsForSamplerResponse]:
        return self._operation(
            SAVE_WEIGHTS_FOR_SAMPLER, request, lambda reply: types.SaveWeightsForSamplerResponse(reply.path)
        )

    def _sampling_client(self, name: str | None) -> APIFuture[SamplingClient]:
        with _convert.naming("name"):
            request = training_pb2.SaveWeightsForSamplerRequest(name=name or "", for_sampling_session=not name)
        saved = self._save_for_sampler(request)

        async def open_session() -> SamplingClient:
            return await SamplingClient.open(self._connection, model_path=(await saved).path)

        return APIFuture(self._connection.loop, open_session(), saved.cancel)

    def _operation(self, kind: OperationKind[Any], request: Any, convert: Callable[[Any], T]) -> APIFuture[T]:
        async def carry_out(seq_ids: Sequence[int], cancelled: asyncio.Event) -> T:
            return convert(await self._order.operation(seq_ids[0], kind, request, cancelled))

        return self._order.begin(1, carry_out)
