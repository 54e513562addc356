"""Authentication of calls: from the `x-api-key` metadata entry to the tenant that the key belongs to."""

from __future__ import annotations

from contextvars import ContextVar

from services.core.catalog.api_keys import ApiKeys
from services.core.errors import UnauthenticatedError
from services.core.process.server import Context

API_KEY_METADATA = "x-api-key"


_tenant: ContextVar[str] = ContextVar("tenant")
"""Tenant of the call that the current task handles."""


class Authenticator:
    """Maps calls to tenants."""

    def __init__(self, api_keys: ApiKeys) -> None:
        self._api_keys = api_keys

    async def tenant(self, context: Context) -> str:
        """The tenant of a call, which is looked up once.

        Raises:
            UnauthenticatedError: the key is missing, unknown or revoked.
        """
        if tenant := _tenant.get(""):
            return tenant
        tenant = await self._api_keys.tenant_of(key_of(context))
        _tenant.set(tenant)
        return tenant


def key_of(context: Context) -> str:
    """The API key of a call.

    Raises:
        UnauthenticatedError: there is none.
    """
    for name, value in context.invocation_metadata() or ():
        if name == API_KEY_METADATA and isinstance(value, str):
            return value
    message = f"no API key: send metadata `{API_KEY_METADATA}: tml-...` (TINKER_API_KEY in the Python client)"
    raise UnauthenticatedError(message, reason="MISSING_API_KEY")
