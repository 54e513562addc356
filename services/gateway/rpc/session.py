"""tinker.v1.SessionService: one session per client process."""

from __future__ import annotations

from services.core.process.server import Context
from services.gateway.rpc.auth import Authenticator
from services.gateway.rpc.paging import fitting, page_request
from services.gateway.stores import Stores
from services.gateway.validation.fields import check_metadata
from tinker_proto.v1 import session_pb2, session_pb2_grpc

DEFAULT_SESSIONS_PER_PAGE = 20


class SessionServicer(session_pb2_grpc.SessionServiceServicer):
    """Opens, keeps and ends sessions."""

    def __init__(self, stores: Stores, auth: Authenticator) -> None:
        self._sessions = stores.sessions
        self._auth = auth

    async def CreateSession(self, request: session_pb2.CreateSessionRequest, context: Context) -> session_pb2.Session:
        """Opens a session."""
        tenant = await self._auth.tenant(context)
        check_metadata("user_metadata", request.user_metadata)
        return await self._sessions.create(tenant, request.user_metadata)

    async def GetSession(self, request: session_pb2.GetSessionRequest, context: Context) -> session_pb2.Session:
        """A session with what was made in it."""
        tenant = await self._auth.tenant(context)
        return await self._sessions.get_with_contents(request.session_id, tenant)

    async def ListSessions(
        self, request: session_pb2.ListSessionsRequest, context: Context
    ) -> session_pb2.ListSessionsResponse:
        """The tenant's sessions, newest first."""
        tenant = await self._auth.tenant(context)
        requested = page_request(request.page_size, request.page_token, DEFAULT_SESSIONS_PER_PAGE)
        found, page = await self._sessions.page(tenant, requested)
        sessions, token = fitting(found, page, lambda session: session.session_id)
        return session_pb2.ListSessionsResponse(sessions=sessions, next_page_token=token, total_size=page.total_size)

    async def HeartbeatSession(
        self, request: session_pb2.HeartbeatSessionRequest, context: Context
    ) -> session_pb2.Session:
        """Notes that the client is there."""
        tenant = await self._auth.tenant(context)
        await self._sessions.open(request.session_id, tenant)
        await self._sessions.touch(request.session_id)
        return await self._sessions.get(request.session_id, tenant)

    async def EndSession(self, request: session_pb2.EndSessionRequest, context: Context) -> session_pb2.Session:
        """Ends a session; ending it again is no error."""
        tenant = await self._auth.tenant(context)
        await self._sessions.get(request.session_id, tenant)
        await self._sessions.end(request.session_id, tenant)
        return await self._sessions.get(request.session_id, tenant)
