"""Checkpoints that were saved over gRPC, on their way to a disk: by the SDK's command line, by links, as an archive."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

import tinker_client
from services.core.catalog.download_links import DownloadLink, DownloadLinks
from services.core.errors import NotFoundError
from services.core.queue.connection import RedisConnection
from testing.platform import API_KEY, BASE_MODEL, Platform

FILES = {"adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture(scope="module")
def saved(sdk_platform: Platform) -> Any:
    with tinker_client.ServiceClient(base_url=sdk_platform.url, api_key=API_KEY) as service:
        training = service.create_lora_training_client(BASE_MODEL, rank=4, seed=7)
        return training.save_state("kept").result().path


@pytest.fixture
def web(sdk_platform: Platform) -> Iterator[httpx.Client]:
    url = f"http://127.0.0.1:{sdk_platform.http_port}/api/v1"
    with httpx.Client(base_url=url, headers={"x-api-key": API_KEY}) as client:
        yield client


def url_of(path: str) -> str:
    run, _, checkpoint = path.removeprefix("tinker://").partition("/")
    return f"training_runs/{run}/checkpoints/{checkpoint}"


def test_the_sdks_command_line_downloads_and_deletes(sdk_platform: Platform, saved: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TINKER_")}
    environment |= {"TINKER_BASE_URL": f"http://127.0.0.1:{sdk_platform.http_port}", "TINKER_API_KEY": API_KEY}

    def tinker(*words: str) -> Any:
        command = [str(Path(sys.executable).with_name("tinker")), "-f", "json", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout.lstrip().startswith("{") else done.stdout

    listed = tinker("checkpoint", "list", "--limit", "0")
    assert saved in {found["tinker_path"] for found in listed["checkpoints"]}
    downloaded = Path(tinker("checkpoint", "download", saved, "-o", str(tmp_path))["destination"])
    assert {path.name for path in downloaded.iterdir()} == FILES


def test_an_archive_holds_what_the_links_give(web: httpx.Client, saved: str) -> None:
    urls = web.get(f"{url_of(saved)}/external_weights_urls").json()["urls"]
    files = {name: httpx.get(url).content for name, url in urls.items()}
    assert set(files) == FILES
    answer = httpx.get(web.get(f"{url_of(saved)}/archive").json()["url"])
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        for name, content in files.items():
            member = archive.extractfile(name)
            assert member is not None
            assert member.read() == content


async def test_a_link_expires(connection: RedisConnection) -> None:
    links = DownloadLinks(connection)
    now = datetime.now(UTC)
    link = DownloadLink("tinker://a:train:0/weights/x", "alice", now + timedelta(seconds=60))
    token = await links.sign(link)
    assert await links.verify(token) == link
    for wrong in (await links.sign(replace(link, expires=now)), token[:-3] + "AAA", token.partition(".")[0] + "."):
        with pytest.raises(NotFoundError):
            await links.verify(wrong)


def test_a_link_of_a_deleted_checkpoint_gives_nothing(web: httpx.Client, sdk_platform: Platform) -> None:
    with tinker_client.ServiceClient(base_url=sdk_platform.url, api_key=API_KEY) as service:
        training = service.create_lora_training_client(BASE_MODEL, rank=4, seed=7)
        path = training.save_weights_for_sampler("doomed").result().path
    urls = web.get(f"{url_of(path)}/external_weights_urls").json()["urls"]
    for _ in range(2):
        assert web.post(f"{url_of(path)}/publish").status_code == 204
    assert web.delete(url_of(path)).status_code == 204
    assert {httpx.get(url).status_code for url in urls.values()} == {404}
    assert web.delete(url_of(path)).status_code == 404
