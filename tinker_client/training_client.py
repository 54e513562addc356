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
    """Trains one adapter; made by ServiceClient."""

    def __init__(self, connection: Connection, session: OpenSession, training_run: training_pb2.TrainingRun) -> None:
        self._connection = connection
        self._session = session
        self._info = _catalog_convert.info(training_run)
        self._order = OperationOrder(connection.loop, session, training_run.training_run_id)

    @property
    def model_id(self) -> str:
        """The training run's id."""
        return self._info.model_id

    def forward(
        self, data: Sequence[types.Datum], loss_fn: str, loss_fn_config: Mapping[str, float] | None = None
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """Computes the loss, summed over tokens and data, and the logprobs; leaves the gradient alone."""
        return compute_loss(self._order, FORWARD, training_pb2.ForwardRequest, data, loss_fn, loss_fn_config)

    def forward_backward(
        self, data: Sequence[types.Datum], loss_fn: str, loss_fn_config: Mapping[str, float] | None = None
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """Computes the loss, and adds its gradient to what the next optim_step will apply."""
        request = training_pb2.ForwardBackwardRequest
        return compute_loss(self._order, FORWARD_BACKWARD, request, data, loss_fn, loss_fn_config)

    def forward_backward_custom(
        self, data: Sequence[types.Datum], loss_fn: CustomLoss[types.Datum]
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """Adds the gradient of any differentiable torch function of all the targets' logprobs.

        `loss_fn(data, logprobs)` gets one float32 tensor per datum, of target_tokens' shape, and returns a scalar loss
        C and a dict of metrics. It runs in a thread of its own. The metrics of the result are the platform's, the
        function's, and "loss:sum" = C. Costs one more forward pass than forward_backward.
        """
        return compute_custom_loss(self._order, data, loss_fn)

    def optim_step(self, adam_params: types.AdamParams) -> APIFuture[types.OptimStepResponse]:
        """Applies one AdamW step with the accumulated gradient, and clears that."""
        request = training_pb2.OptimStepRequest(adam_params=_convert.adam_params_to_proto(adam_params))
        return self._operation(OPTIM_STEP, request, lambda reply: types.OptimStepResponse(dict(reply.metrics)))

    def save_state(
        self,
        name: str,
        ttl_seconds: int | None = None,
        overwrite: bool = False,
        user_metadata: Mapping[str, str] | None = None,
    ) -> APIFuture[types.SaveWeightsResponse]:
        """Saves weights and optimizer as checkpoint `name`; a name in use fails unless `overwrite`.

        The checkpoint deletes itself `ttl_seconds` after it was written; None: never. `user_metadata` are its labels.
        """
        with _convert.naming("name"):
            request = training_pb2.SaveStateRequest(name=name, overwrite=overwrite)
        _convert.set_lifetime_and_labels(request, ttl_seconds, user_metadata)
        return self._operation(SAVE_STATE, request, lambda reply: types.SaveWeightsResponse(reply.path))

    def load_state(self, path: str) -> APIFuture[types.LoadWeightsResponse]:
        """Loads a checkpoint's weights; the optimizer starts anew."""
        return self._load(path, restore_optimizer=False)

    def load_state_with_optimizer(self, path: str) -> APIFuture[types.LoadWeightsResponse]:
        """Loads a checkpoint's weights and optimizer: training goes on as if it had not stopped."""
        return self._load(path, restore_optimizer=True)

    def save_weights_for_sampler(
        self, name: str, ttl_seconds: int | None = None, user_metadata: Mapping[str, str] | None = None
    ) -> APIFuture[types.SaveWeightsForSamplerResponse]:
        """Saves the weights alone, for sampling; they never change afterwards. The rest is as in `save_state`."""
        with _convert.naming("name"):
            request = training_pb2.SaveWeightsForSamplerRequest(name=name)
        _convert.set_lifetime_and_labels(request, ttl_seconds, user_metadata)
        return self._operation(
            SAVE_WEIGHTS_FOR_SAMPLER, request, lambda reply: types.SaveWeightsForSamplerResponse(reply.path)
        )

    def save_weights_and_get_sampling_client(self, name: str | None = None) -> SamplingClient:
        """Saves the weights for sampling, under a name of the platform's if none is given, and samples from them."""
        return self._sampling_client(name).result()

    def get_info(self) -> types.GetInfoResponse:
        """What is trained: base model and adapter shape."""
        return self._info

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer, as the platform uses it."""
        return get_tokenizer(self._connection, self._info.model_name)

    async def forward_async(
        self, data: Sequence[types.Datum], loss_fn: str, loss_fn_config: Mapping[str, float] | None = None
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """`forward`, already called."""
        return self.forward(data, loss_fn, loss_fn_config)

    async def forward_backward_async(
        self, data: Sequence[types.Datum], loss_fn: str, loss_fn_config: Mapping[str, float] | None = None
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """`forward_backward`, already called."""
        return self.forward_backward(data, loss_fn, loss_fn_config)

    async def forward_backward_custom_async(
        self, data: Sequence[types.Datum], loss_fn: CustomLoss[types.Datum]
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """`forward_backward_custom`, already called."""
        return self.forward_backward_custom(data, loss_fn)

    async def optim_step_async(self, adam_params: types.AdamParams) -> APIFuture[types.OptimStepResponse]:
        """`optim_step`, already called."""
        return self.optim_step(adam_params)

    async def save_state_async(
        self,
        name: str,
        ttl_seconds: int | None = None,
        overwrite: bool = False,
        user_metadata: Mapping[str, str] | None = None,
    ) -> APIFuture[types.SaveWeightsResponse]:
        """`save_state`, already called."""
        return self.save_state(name, ttl_seconds, overwrite, user_metadata)

    async def load_state_async(self, path: str) -> APIFuture[types.LoadWeightsResponse]:
        """`load_state`, already called."""
        return self.load_state(path)

    async def load_state_with_optimizer_async(self, path: str) -> APIFuture[types.LoadWeightsResponse]:
        """`load_state_with_optimizer`, already called."""
        return self.load_state_with_optimizer(path)

    async def save_weights_for_sampler_async(
        self, name: str, ttl_seconds: int | None = None, user_metadata: Mapping[str, str] | None = None
    ) -> APIFuture[types.SaveWeightsForSamplerResponse]:
        """`save_weights_for_sampler`, already called."""
        return self.save_weights_for_sampler(name, ttl_seconds, user_metadata)

    async def save_weights_and_get_sampling_client_async(self, name: str | None = None) -> SamplingClient:
        """`save_weights_and_get_sampling_client`, awaited."""
        return await self._sampling_client(name)

    async def get_info_async(self) -> types.GetInfoResponse:
        """`get_info`, awaited."""
        return self.get_info()

    async def get_tokenizer_async(self) -> PreTrainedTokenizerBase:
        """`get_tokenizer`, awaited."""
        return await get_tokenizer_async(self._connection, self._info.model_name)

    def _load(self, path: str, *, restore_optimizer: bool) -> APIFuture[types.LoadWeightsResponse]:
        with _convert.naming("path"):
            request = training_pb2.LoadStateRequest(path=path, restore_optimizer=restore_optimizer)
        return self._operation(LOAD_STATE, request, lambda reply: types.LoadWeightsResponse(reply.path))

    def _sampling_client(self, name: str | None) -> APIFuture[SamplingClient]:
        saved = self.save_weights_for_sampler(name or "")

        async def open_session() -> SamplingClient:
            return await SamplingClient.open(self._connection, model_path=(await saved).path)

        return APIFuture(self._connection.loop, open_session(), saved.cancel)

    def _operation(self, kind: OperationKind[Any], request: Any, convert: Callable[[Any], T]) -> APIFuture[T]:
        async def carry_out(seq_ids: Sequence[int], cancelled: asyncio.Event) -> T:
            return convert(await self._order.operation(seq_ids[0], kind, request, cancelled))

        return self._order.begin(1, carry_out)
