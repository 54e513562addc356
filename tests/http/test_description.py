"""/openapi.json and /docs describe every route, and each body as the endpoint reads it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[2] / "services" / "gateway" / "http"


@pytest.fixture
async def document(http: httpx.AsyncClient) -> Any:
    answer = await http.get("http://gateway/openapi.json")
    assert answer.status_code == 200
    return answer.json()


def test_every_route_has_a_sentence_of_its_own(document: Any) -> None:
    paths = document["paths"]
    for path in ("/healthz", "/metrics", "/v1/chat/completions", "/v1/models/{model}", "/api/v1/asample"):
        assert path in paths
    operations = [operation for methods in paths.values() for operation in methods.values()]
    assert len(operations) > 40
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        assert re.fullmatch(r"[A-Z].+\.", operation["summary"]), operation


def test_every_body_that_is_read_is_described(document: Any) -> None:
    sources = [path.read_text() for part in ("sdk", "openai") for path in (ROOT / part).glob("*.py")]
    function = r"async def \w+\((?:(?!async def)[\s\S])*?"
    read = r"read_(?:json|protobuf)\(request, ([\w.]+)"
    pattern = r"@takes\(([\w.]+)\)\s+" + function + read
    pairs = [pair for source in sources for pair in re.findall(pattern, source)]
    assert len(pairs) == sum(len(re.findall(r"read_(?:json|protobuf)\(request, ", source)) for source in sources)
    assert [pair for pair in pairs if pair[0] != pair[1]] == []
    named = {pair[0] for pair in pairs if "." not in pair[0]}
    assert len(named) == sum(1 for pair in pairs if "." not in pair[0]), "two bodies of one name"
    assert named <= document["components"]["schemas"].keys()


def test_references_lead_somewhere(document: Any) -> None:
    references = set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(document)))
    assert references
    assert references <= document["components"]["schemas"].keys()


async def test_the_page_names_every_path_and_loads_nothing_from_elsewhere(
    http: httpx.AsyncClient, document: Any
) -> None:
    page = (await http.get("http://gateway/docs")).text
    assert all(path in page for path in document["paths"])
    assert "http://" not in page
    assert "https://" not in page
