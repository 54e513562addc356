"""How what goes wrong with a request is reported: refusals as they are, everything else as a fault of the platform.

What tenants see names no internals; the log has the exception.
"""

from __future__ import annotations

import logging

from services.core.errors import FailedPreconditionError, InternalError, PlatformError, ResourceExhaustedError
from services.model.device import is_out_of_memory
from services.sampler.engine.sequence import Group
from services.sampler.request import Finished

_log = logging.getLogger(__name__)


def failure(name: str, error: Exception) -> Finished:
    """The end of a request with an error."""
    if isinstance(error, PlatformError):
        return Finished(name, error)
    if is_out_of_memory(error):
        message = "the sampler's memory has no room for the request beside the others; send it again later"
        _log.warning("no memory for %s: %s", name, error)
        return Finished(name, ResourceExhaustedError(message, reason="OUT_OF_MEMORY"))
    _log.error("a step failed with %s in it", name, exc_info=error)
    return Finished(name, InternalError(f"sampling failed: {type(error).__name__}", reason="STEP_FAILED"))


def not_finite(group: Group) -> FailedPreconditionError:
    """The error of a request whose weights give logits that are not finite."""
    weights = group.request.adapter.name if group.request.adapter is not None else "the base model"
    return FailedPreconditionError(f"{weights} gives logits that are not finite", reason="NON_FINITE_LOGITS")
