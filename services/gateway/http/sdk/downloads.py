"""Downloads of checkpoints: links that work without a key for a while, file by file or as a tar archive.

A link says which checkpoint and until when, signed with a secret that all gateways share: whoever has the link may
read, as the SDK's command line does it with plain requests.
"""

from __future__ import annotations

import tarfile
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from services.core.catalog.api_keys import unknown_key
from services.core.catalog.checkpoints import StoredCheckpoint
from services.core.catalog.download_links import DownloadLink
from services.core.errors import NotFoundError
from services.gateway.http.backend import Backend
from services.gateway.http.sdk.checkpoints import ONE, path_of
from services.gateway.transfers import CheckpointFiles
from services.gateway.validation.fields import parse_path
from tinker_proto.v1 import checkpoint_pb2

VALID = timedelta(hours=1)


def routes(backend: Backend) -> Sequence[BaseRoute]:
    """The routes of this group."""
    links = backend.stores.download_links

    async def checkpoint(request: Request) -> tuple[StoredCheckpoint, DownloadLink, str]:
        tenant = await backend.tenant(request)
        stored = await backend.stores.catalog.checkpoints.get(path_of(request), tenant)
        link = DownloadLink(stored.checkpoint.tinker_path, tenant, datetime.now(UTC) + VALID)
        return stored, link, await links.sign(link)

    async def urls(request: Request) -> Response:
        """Links to a checkpoint's files."""
        stored, link, token = await checkpoint(request)
        files = await backend.files.of_checkpoint(stored)
        content = {file.name: str(request.url_for("download", token=token, name=file.name)) for file in files}
        return JSONResponse({"urls": content, "expires": link.expires.isoformat()})

    async def archive(request: Request) -> Response:
        """A link to a checkpoint's files in one archive."""
        stored, link, token = await checkpoint(request)
        name = stored.checkpoint.checkpoint_id.rpartition("/")[2] + ".tar"
        url = str(request.url_for("download", token=token, name=name))
        return JSONResponse({"url": url, "expires": link.expires.isoformat()})

    async def download(request: Request) -> Response:
        """What a link leads to."""
        link = await links.verify(request.path_params["token"])
        if not await backend.stores.api_keys.has_key(link.tenant):
            raise unknown_key()
        path = parse_path("token", link.tinker_path)
        stored = await backend.stores.catalog.checkpoints.get(path, link.tenant)
        name, files = request.path_params["name"], await backend.files.of_checkpoint(stored)
        if name == f"{path.name}.tar":
            return StreamingResponse(_tar(backend.files, stored, files), media_type="application/x-tar")
        for file in files:
            if file.name == name:
                headers = {"content-length": str(file.size_bytes)}
                pieces = backend.files.read_checkpoint(stored, name, 0)
                return StreamingResponse(pieces, media_type="application/octet-stream", headers=headers)
        raise NotFoundError(f"there is no file {name[:100]!r} in {path}", reason="FILE_NOT_FOUND")

    return [
        Route(f"{ONE}/external_weights_urls", urls),
        Route(f"{ONE}/archive", archive),
        Route("/downloads/{token}/{name}", download, name="download"),
    ]


async def _tar(
    source: CheckpointFiles, stored: StoredCheckpoint, files: Sequence[checkpoint_pb2.File]
) -> AsyncIterator[bytes]:
    """A tar archive of a checkpoint's files, as it is read."""
    for file in files:
        entry = tarfile.TarInfo(file.name)
        entry.size, entry.mtime = file.size_bytes, stored.checkpoint.time.seconds
        yield entry.tobuf(tarfile.PAX_FORMAT)
        async for piece in source.read_checkpoint(stored, file.name, 0):
            yield piece
        yield bytes(-file.size_bytes % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)
