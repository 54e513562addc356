"""Files on their way: what a platform may not send, and what a directory may not hold."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from tinker_client._address import Address
from tinker_client._download import download
from tinker_client._transport import Transport
from tinker_client._upload import AdapterFiles, upload
from tinker_client.errors import BadRequestError, InternalServerError
from tinker_proto.v1 import checkpoint_pb2, checkpoint_pb2_grpc


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "/etc/passwd", "a/../b", "a/../../b", "a//b", "a/", "a\\b", "C:b", "a\0"]
)
def test_a_platform_cannot_write_outside_the_directory(tmp_path: Path, name: str) -> None:
    transport: Any = None  # it comes to no call
    files = [checkpoint_pb2.File(name=name, size_bytes=1, sha256="0" * 64)]
    with pytest.raises(InternalServerError, match="not a relative file name"):
        asyncio.run(download(transport, files, tmp_path / "to", lambda name, offset: None, None))  # type: ignore[arg-type, return-value]
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_place_of_a_file_is_other_content(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    transport: Any = None
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    with pytest.raises(FileExistsError):
        asyncio.run(download(transport, [checkpoint_pb2.File(name="a", sha256=empty)], tmp_path, Any, None))


def test_a_link_in_place_of_a_subdirectory_is_other_content(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "a").symlink_to(tmp_path / "elsewhere")
    transport: Any = None
    with pytest.raises(FileExistsError, match="/to/a has other content"):
        asyncio.run(download(transport, [checkpoint_pb2.File(name="a/b", sha256="0")], tmp_path / "to", Any, None))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_an_adapter_is_a_directory_or_a_safetensors_file(tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "checkpoint-5").mkdir()
    found = AdapterFiles.find(tmp_path)
    assert found == AdapterFiles.find(tmp_path / "adapter_model.safetensors")
    (tmp_path / "other.json").write_bytes(b"x")
    assert AdapterFiles.find(found.weights, tmp_path / "other.json").config.name == "other.json"
    for path in (tmp_path / "README.md", tmp_path / "missing"):
        with pytest.raises(ValueError, match="neither an adapter's directory nor"):
            AdapterFiles.find(path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json"):
        AdapterFiles.find(tmp_path)


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """An adapter where huggingface_hub puts it."""
    repository = tmp_path / "hub/models--me--lamp"
    directory, blobs = repository / "snapshots/0123abcd", repository / "blobs"
    directory.mkdir(parents=True)
    blobs.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        (blobs / f"hash-of-{name}").write_text(name)
        (directory / name).symlink_to(Path("../../blobs") / f"hash-of-{name}")
    return directory


def test_an_adapter_in_the_hugging_face_cache_is_read_through_its_links(snapshot: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(snapshot)
    nested = snapshot / "checkpoint-5"
    nested.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (nested / name).symlink_to(Path("../../../blobs") / f"hash-of-{name}")
    for path in (snapshot, tmp_path / "link", nested, snapshot / "adapter_model.safetensors"):
        found = AdapterFiles.find(path)
        assert (found.config.read_text(), found.weights.read_text()) == (
            "adapter_config.json",
            "adapter_model.safetensors",
        )
        assert not found.config.is_symlink()


@pytest.mark.parametrize("lead", ["out", "to another repository", "beside the blobs", "to a directory", "by the blobs"])
def test_a_link_in_the_hugging_face_cache_that_leads_elsewhere_is_refused(
    snapshot: Path, tmp_path: Path, lead: str
) -> None:
    blobs = snapshot.parent.parent / "blobs"
    places = {
        "out": tmp_path / "secret",
        "to another repository": tmp_path / "hub/models--me--other/blobs/secret",
        "beside the blobs": blobs.parent / "secret",
        "to a directory": blobs / "secret/file",
        "by the blobs": tmp_path / "elsewhere/secret",
    }
    target = places[lead]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("secret")
    if lead == "by the blobs":
        for blob in blobs.iterdir():
            blob.unlink()
        blobs.rmdir()
        blobs.symlink_to(target.parent)
        target = blobs / "secret"
    weights = snapshot / "adapter_model.safetensors"
    weights.unlink()
    weights.symlink_to(target.parent if lead == "to a directory" else target)
    with pytest.raises(ValueError, match=r"is a link; .* plain files only; `hf download NAME --local-dir DIR`"):
        AdapterFiles.find(snapshot)


class FlakyFiles(checkpoint_pb2_grpc.CheckpointServiceServicer):
    """A file that breaks off after every 1,000 bytes, and uploads of which the first breaks off."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.offsets: list[int] = []
        self.uploads: list[bytes] = []

    async def ReadFile(self, request: Any, context: Any) -> AsyncIterator[checkpoint_pb2.ReadFileResponse]:  # noqa: N802
        self.offsets.append(request.offset)
        for start in (request.offset, request.offset + 500):
            yield checkpoint_pb2.ReadFileResponse(content=self.content[start : start + 500])
        if request.offset + 1000 < len(self.content):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the gateway is going away")

    async def UploadFile(self, requests: Any, context: Any) -> checkpoint_pb2.UploadFileResponse:  # noqa: N802
        first = await anext(requests)
        if not self.uploads:
            self.uploads.append(b"")
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the gateway is going away")
        self.uploads.append(b"".join([request.content async for request in requests]))
        return checkpoint_pb2.UploadFileResponse(upload_id=first.file.name)


@asynccontextmanager
async def serving(files: FlakyFiles) -> AsyncIterator[Transport]:
    server = grpc.aio.server()
    checkpoint_pb2_grpc.add_CheckpointServiceServicer_to_server(files, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    transport = Transport(Address.resolve(f"grpc://127.0.0.1:{port}"), "key")
    yield transport
    await transport.close()
    await server.stop(None)


async def test_a_download_goes_on_over_broken_streams(tmp_path: Path) -> None:
    content = bytes(range(250)) * 14
    files, reports = FlakyFiles(content), []
    described = checkpoint_pb2.File(name="a/b", size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    def request(name: str, offset: int) -> checkpoint_pb2.ReadFileRequest:
        return checkpoint_pb2.ReadFileRequest(name=name, offset=offset)

    async with serving(files) as transport:
        await download(transport, [described], tmp_path, request, lambda done, total: reports.append((done, total)))
    assert (tmp_path / "a" / "b").read_bytes() == content
    assert files.offsets == [0, 1000, 2000, 3000]
    assert reports[-1] == (len(content), len(content))
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]


async def test_an_upload_that_broke_off_is_sent_again(tmp_path: Path) -> None:
    weights = bytes(3 << 20)
    (tmp_path / "adapter_config.json").write_bytes(b"{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(weights)
    files = FlakyFiles(b"")
    reports: list[tuple[int, int]] = []
    async with serving(files) as transport:
        found = AdapterFiles.find(tmp_path)
        ids = await upload(transport, found, lambda done, total: reports.append((done, total)))
    assert ids == ("adapter_config.json", "adapter_model.safetensors")
    assert files.uploads == [b"", b"{}", weights]
    assert reports[-1] == (len(weights) + 2, len(weights) + 2)


class RefusingFiles(FlakyFiles):
    """Takes no uploads, and says so at once."""

    async def UploadFile(self, requests: Any, context: Any) -> checkpoint_pb2.UploadFileResponse:  # noqa: N802
        await anext(requests)
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "it is too large")
        raise AssertionError


class BusyFiles(FlakyFiles):
    """Takes what comes first, and leaves the rest on its way."""

    async def UploadFile(self, requests: Any, context: Any) -> checkpoint_pb2.UploadFileResponse:  # noqa: N802
        await anext(requests)
        await asyncio.Event().wait()
        raise AssertionError


async def test_no_file_is_open_while_an_upload_waits_for_the_platform(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_bytes(bytes(20 << 20))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    begun = asyncio.Event()
    async with serving(BusyFiles(b"")) as transport:
        uploading = asyncio.create_task(upload(transport, AdapterFiles.find(tmp_path), lambda done, total: begun.set()))
        async with asyncio.timeout(60):
            await begun.wait()
            while any(Path(file.path).is_relative_to(tmp_path) for file in psutil.Process().open_files()):
                await asyncio.sleep(0.01)  # a piece is being read
        assert not uploading.done()
        uploading.cancel()
        await asyncio.wait([uploading])


async def test_a_refused_upload_says_why_however_much_is_on_its_way(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_bytes(bytes(20 << 20))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    async with serving(RefusingFiles(b"")) as transport:
        for _ in range(40):
            with pytest.raises(BadRequestError, match="it is too large"):
                await upload(transport, AdapterFiles.find(tmp_path), lambda done, total: None)
