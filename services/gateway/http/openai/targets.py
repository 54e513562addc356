"""Targets of sampling, by a request's `model`: a base model's name, or the tinker path of a checkpoint.

A gateway opens one session for each tenant that comes this way, and in it one sampling session for each model and
version of it. A path that has been saved again means the new version from that moment on. Every session ends after a
while, because it pins what was sampled from: a checkpoint that is deleted would never go otherwise.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.core.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, quoted
from services.gateway.http.backend import Backend
from services.gateway.http.openai.text import ModelText
from services.gateway.validation.fields import parse_path
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import sampling_pb2

SESSION_LABELS = {"tinker.client": "openai"}
SESSION_S = 3600.0
MOST_TARGETS = 1000
"""Of one session."""

MOST_TOKENIZERS = 16

FEWEST_CHARACTERS = 64
"""That every token may stand for: some tokenizers leave spaces out, or have one token for all they do not know."""


@dataclass(frozen=True)
class Target:
    """What is sampled from."""

    sampling_session_id: str
    base_model: str
    text: ModelText
    context: int
    """Tokens that a prompt and its continuation may have together."""

    def check_length(self, field: str, characters: int) -> None:
        """Refuses a text that could not fit the context if all its tokens were the longest; before it is worked on.

        Raises:
            InvalidArgumentError: it is longer.
        """
        longest = max(self.text.longest_token, FEWEST_CHARACTERS)
        if characters > self.context * longest:
            rule = f"at most {self.context * longest} characters, {longest} for each token of the context"
            raise InvalidArgumentError.must_be(field, rule, characters, reason="BAD_LENGTH")

    def check_tokens(self, field: str, tokens: Sequence[int]) -> None:
        """Refuses a prompt that leaves no room in the context.

        Raises:
            InvalidArgumentError: it is too long.
        """
        if len(tokens) >= self.context:
            rule = f"shorter than the context of {self.context} tokens"
            raise InvalidArgumentError.must_be(field, rule, len(tokens), reason="BAD_LENGTH")


@dataclass
class _TenantSession:
    """A tenant's session and what is open in it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    session_id: str = ""
    since: float = 0.0
    opened: int = 0
    samplings: dict[tuple[str, str], sampling_pb2.SamplingSession] = field(default_factory=dict)
    """By model and version."""


class Targets:
    """All targets of one gateway."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._sessions: defaultdict[str, _TenantSession] = defaultdict(_TenantSession)
        self._texts: OrderedDict[str, ModelText] = OrderedDict()

    async def of(self, tenant: str, name: str) -> Target:
        """The target of a request.

        Raises:
            NotFoundError: there is no such base model or checkpoint for this tenant.
            InvalidArgumentError: the path is none, or does not say which kind of checkpoint is meant.
        """
        version = await self.version(tenant, name)
        current = self._sessions[tenant]
        async with current.lock:
            sampling = current.samplings.get((name, version))
            if sampling is None or not await self._is_open(current, tenant):
                sampling = await self._open(current, tenant, name)
                current.samplings[name, version] = sampling
        base_model = sampling.base_model
        limits = await self._backend.stores.workers.limits(base_model, job_pb2.WORKER_KIND_SAMPLER)
        text = await self._text(base_model)
        return Target(sampling.sampling_session_id, base_model, text, limits.max_context_length)

    async def version(self, tenant: str, name: str) -> str:
        """Where a checkpoint is stored now; "" for a base model. Raises as `of`."""
        if not name.startswith("tinker://"):
            await self._backend.stores.workers.serving(name, job_pb2.WORKER_KIND_SAMPLER, "model")
            return ""
        path = parse_path("model", name)
        if path.kind is None:
            rule = "a path with /sampler_weights/ or /weights/ before the name"
            raise InvalidArgumentError.must_be("model", rule, quoted(name), reason="BAD_TINKER_PATH")
        return (await self._backend.stores.catalog.checkpoints.get(path, tenant)).location

    async def _is_open(self, current: _TenantSession, tenant: str) -> bool:
        """Says that the session is in use; False if it is gone, or has served its time and is ended here."""
        if current.opened >= MOST_TARGETS or time.monotonic() - current.since > SESSION_S:
            await self._backend.stores.sessions.end(current.session_id, tenant)
            return False
        try:
            await self._backend.stores.sessions.open(current.session_id, tenant)
        except (NotFoundError, FailedPreconditionError):
            return False
        await self._backend.stores.sessions.touch(current.session_id)
        return True

    async def _open(self, current: _TenantSession, tenant: str, name: str) -> sampling_pb2.SamplingSession:
        if not current.session_id or not await self._is_open(current, tenant):
            session = await self._backend.stores.sessions.create(tenant, SESSION_LABELS)
            current.session_id, current.since, current.opened = session.session_id, time.monotonic(), 0
            current.samplings.clear()
        request = sampling_pb2.CreateSamplingSessionRequest(
            session_id=current.session_id, sampling_session_seq_id=current.opened
        )
        current.opened += 1
        if name.startswith("tinker://"):
            request.model_path = name
        else:
            request.base_model = name
        return await self._backend.creation.sampling_session(tenant, request)

    async def _text(self, base_model: str) -> ModelText:
        stores = self._backend.stores
        status = await stores.workers.any_kind(base_model, "model")
        blob = status.text_blob or status.tokenizer_blob
        if blob not in self._texts:
            files = job_pb2.TokenizerFiles.FromString(await stores.blobs.get(blob)).files
            self._texts[blob] = await asyncio.to_thread(ModelText, dict(files))
            if len(self._texts) > MOST_TOKENIZERS:
                self._texts.popitem(last=False)
        return self._texts[blob]
