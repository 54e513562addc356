"""Ends of requests that cannot be answered: refusals as they are, other errors as failures of the platform.

Messages to clients name no internals; the log has the exception.
"""

from __future__ import annotations

import structlog

from services.core.errors import FailedPreconditionError, InternalError, PlatformError, ResourceExhaustedError
from services.model.device import is_out_of_memory
from services.sampler.request import Finished, GenerationRequest

_log = structlog.get_logger(__name__)


def failure(name: str, error: Exception) -> Finished:
    """The end of a request with an error.

    Args:
        name: the request's name, which is its operation's.
        error: a PlatformError, which is the request's own fault, or any other exception.
    """
    if isinstance(error, PlatformError):
        return Finished(name, error)
    if is_out_of_memory(error):
        _log.warning("out of memory", operation=name, error=str(error))
        message = f"operation {name} does not fit into the sampler's memory beside the others; send it again later"
        return Finished(name, ResourceExhaustedError(message, reason="OUT_OF_MEMORY"))
    _log.error("operation failed", operation=name, exc_info=error)
    message = f"operation {name} failed in the sampler; see its log"
    return Finished(name, InternalError(message, reason="STEP_FAILED"))


def not_finite(request: GenerationRequest) -> FailedPreconditionError:
    """The error of a request whose weights give logits that are not finite."""
    weights = f"checkpoint {request.adapter.name}" if request.adapter is not None else "the base model"
    message = f"operation {request.name} failed: {weights} gives logits that are not finite"
    return FailedPreconditionError(message, reason="NON_FINITE_LOGITS")
