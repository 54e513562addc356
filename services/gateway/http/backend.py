"""Backend of all routes: the stores, the application functions, and authentication by API key."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from services.core.config import GatewaySettings
from services.core.errors import UnauthenticatedError
from services.gateway.creation import Creation
from services.gateway.http.body_budget import BodyBudget
from services.gateway.request_budget import RequestBudget
from services.gateway.stores import Stores
from services.gateway.submission import Submission
from services.gateway.transfers import CheckpointFiles
from services.gateway.work import Work


@dataclass(frozen=True)
class Backend:
    """The application functions behind the HTTP port."""

    settings: GatewaySettings
    stores: Stores
    submission: Submission
    creation: Creation
    requests: RequestBudget

    @classmethod
    def open(cls, settings: GatewaySettings, stores: Stores) -> Backend:
        """The application functions over one set of stores."""
        submission = Submission(stores, settings)
        return cls(settings, stores, submission, Creation(stores, submission), RequestBudget.of(settings))

    @property
    def work(self) -> Work:
        """Work on requests that takes long."""
        return self.submission.work

    @property
    def files(self) -> CheckpointFiles:
        """Files of checkpoints."""
        return CheckpointFiles(self.stores, self.submission)

    async def tenant(self, request: Request) -> str:
        """The tenant of a request, whose body may be read from here on.

        Raises:
            UnauthenticatedError: the key is missing, unknown or revoked.
        """
        key = key_of(request)
        request.state.call.uses(key)
        tenant = await self.stores.api_keys.tenant_of(key)
        owner = f"{tenant} {request.scope['endpoint'].__qualname__}"
        seconds, held = self.settings.arrival_seconds, request.state.held
        request.state.body = BodyBudget(tenant, self.work, self.requests, owner, seconds, held)
        return tenant


def key_of(request: Request) -> str:
    """The API key of a request: `X-API-Key: tml-...`, or `Authorization: Bearer tml-...`.

    Raises:
        UnauthenticatedError: there is none.
    """
    key = request.headers.get("x-api-key")
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if key is None and scheme.lower() == "bearer":
        key = token.strip()
    if not key:
        message = "no API key: send the header `X-API-Key: tml-...` (TINKER_API_KEY in the SDK)"
        raise UnauthenticatedError(message, reason="MISSING_API_KEY")
    return key
