"""The Python client: `import tinker_client as tinker`.

Start at ServiceClient. Importing this package imports neither torch nor transformers, and starts nothing.
"""

import tinker_client._fork  # noqa: F401 - first, because it loads gRPC
from tinker_client import types  # isort: split

from tinker_client.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    CodedError,
    ConflictError,
    FieldViolation,
    ForkedClientError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestFailedError,
    TinkerError,
)
from tinker_client.future import APIFuture
from tinker_client.rest_client import RestClient
from tinker_client.sample_stream import SampleStream
from tinker_client.sampling_client import SamplingClient
from tinker_client.service_client import ServiceClient
from tinker_client.training_client import TrainingClient
from tinker_client.types import *  # noqa: F403  (its __all__ is part of this one)

__all__ = [
    "APIConnectionError",
    "APIFuture",
    "APIStatusError",
    "APITimeoutError",
    "AuthenticationError",
    "BadRequestError",
    "CodedError",
    "ConflictError",
    "FieldViolation",
    "ForkedClientError",
    "InternalServerError",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "RequestFailedError",
    "RestClient",
    "SampleStream",
    "SamplingClient",
    "ServiceClient",
    "TinkerError",
    "TrainingClient",
    "types",
]
__all__ += types.__all__
