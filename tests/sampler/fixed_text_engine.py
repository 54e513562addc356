"""A second engine: it answers a fixed text, one token a step. No model, no torch, few abilities."""

from __future__ import annotations

import threading
from pathlib import Path

from services.core.abilities import Ability, missing_ability
from services.core.errors import InternalError
from services.model.fingerprint import Fingerprint
from services.model.tokenizer_files import TokenizerFiles
from services.sampler.engine.interface import EngineInfo, WeightMerger
from services.sampler.request import Finished, GenerationRequest, GenerationResult, SampledTokens, TokenDelta

ANSWER = (7, 8, 9, 2)
LOGPROB = -0.5
ENDLESS = 99
"""A prompt that begins with this token gets no end."""

BROKEN = 98
"""A prompt that begins with this token fails."""

UNPRINTABLE = 97
"""A prompt that begins with this token has a result that no message can hold."""


class FixedTextEngine:
    """Answers `ANSWER` to every prompt."""

    def __init__(
        self, *, base_model: str, aliases: tuple[str, ...] = (), fingerprint: str = "", max_sequences: int = 2
    ) -> None:
        self.info = EngineInfo(
            base_model=base_model,
            aliases=aliases,
            max_context_length=64,
            vocab_size=100,
            eos_token_ids=frozenset({2}),
            max_sequences=max_sequences,
            fingerprint=Fingerprint(fingerprint),
            tokenizer_files=TokenizerFiles(own={}, model_config=b"{}", resaved={}),
            abilities=frozenset({Ability.PROMPT_LOGPROBS}),
        )
        self.merger: WeightMerger | None = None
        self._steps: dict[str, int] = {}
        self._requests: dict[str, GenerationRequest] = {}
        self._deltas: list[TokenDelta] = []
        self.stepping: threading.Thread | None = None
        self.read: list[tuple[Path, threading.Thread]] = []

    @property
    def idle(self) -> bool:
        return not self._requests

    @property
    def running_sequences(self) -> int:
        return sum(max(request.num_samples, 1) for request in self._requests.values())

    @property
    def free_sequences(self) -> int:
        return max(self.info.max_sequences - self.running_sequences, 0)

    @property
    def waiting_tenants(self) -> frozenset[str]:
        return frozenset(request.tenant for request in self._requests.values())

    def read_ahead(self, adapter: Path) -> None:
        self.read.append((adapter, threading.current_thread()))

    def submit(self, request: GenerationRequest) -> None:
        if request.topk_prompt_logprobs:
            raise missing_ability(
                Ability.TOPK_PROMPT_LOGPROBS, field="topk_prompt_logprobs", base_model=self.info.base_model
            )
        self._requests[request.name] = request
        self._steps[request.name] = 0

    def cancel(self, name: str) -> bool:
        return self._requests.pop(name, None) is not None

    def step(self) -> list[Finished]:
        self.stepping = threading.current_thread()
        finished = []
        for name, request in list(self._requests.items()):
            if request.prompt[0] == ENDLESS:
                continue
            position = self._steps[name]
            self._steps[name] = position + 1
            ends = request.num_samples == 0 or position == len(ANSWER) - 1
            if request.streamed:
                reason = "stop" if ends else None
                for index in range(request.num_samples):
                    token = ANSWER[position : position + 1]
                    self._deltas.append(TokenDelta(name, index, position, token, (LOGPROB,), reason))
            if ends:
                del self._requests[name]
                finished.append(Finished(name, self._result(request)))
        return finished

    def take_token_deltas(self) -> list[TokenDelta]:
        deltas, self._deltas = self._deltas, []
        return deltas

    def _result(self, request: GenerationRequest) -> GenerationResult | InternalError:
        if request.prompt[0] == BROKEN:
            return InternalError("broken", reason="BROKEN")
        if request.prompt[0] == UNPRINTABLE:
            return GenerationResult((SampledTokens((2**40,), (LOGPROB,), "stop"),))
        sampled = SampledTokens(ANSWER, (LOGPROB,) * len(ANSWER), "stop")
        scores = (float("nan"), *[LOGPROB] * (len(request.prompt) - 1)) if request.include_prompt_logprobs else None
        return GenerationResult((sampled,) * request.num_samples, scores)
