"""Traces of sessions: each operation's waiting and work, by a link that needs no key and ends."""

from __future__ import annotations

import httpx

from services.gateway.stores import Stores
from tests.gateway.caller import BASE
from tests.http.test_futures import sample, sampling_session
from tinker_proto.v1 import sampling_pb2


async def test_spans_are_those_of_the_sessions_operations(http: httpx.AsyncClient, stores: Stores) -> None:
    sampling, other = await sampling_session(http), await sampling_session(http)
    for name in (sampling, sampling, other):
        await sample(http, name, 0)
    await sample(http, sampling, 1)
    await stores.sample_queues.join(BASE)
    (entry,) = await stores.sample_queues.take("s", BASE, free=1, block_ms=100)
    assert await stores.sample_queues.begin("s", entry)
    result = await stores.operations.result(sampling_pb2.SampleResponse())
    await stores.sample_queues.complete(BASE, entry, result)
    await http.post("cancel_future", json={"request_id": f"{sampling}:1"})

    session = sampling.partition(":")[0]
    answer = (await http.get(f"sessions/{session}/trace_export")).json()
    assert answer["status"] == "ready"
    file = await http.get(answer["url"], headers={"x-api-key": ""})
    events = file.json()["traceEvents"]
    begins = {(event["cat"], event["id"]): event for event in events if event["ph"] == "b"}
    ends = {(event["cat"], event["id"]): event["ts"] for event in events if event["ph"] == "e"}
    assert begins.keys() == {("queue", f"{sampling}:0"), ("pass", f"{sampling}:0"), ("queue", f"{sampling}:1")}
    assert begins["queue", f"{sampling}:1"]["args"]["state"] == "cancelled"
    assert begins["pass", f"{sampling}:0"]["ts"] == ends["queue", f"{sampling}:0"]
    assert all(event["ts"] <= ends[key] for key, event in begins.items())
    assert {event["args"]["name"] for event in events if event["ph"] == "M"} == {f"session {session}", sampling}


async def test_a_trace_is_its_tenants_and_its_link_nothing_else(http: httpx.AsyncClient) -> None:
    assert (await http.get("sessions/unknown/trace_export")).status_code == 404
    sampling = await sampling_session(http)
    url = (await http.get(f"sessions/{sampling.partition(':')[0]}/trace_export")).json()["url"]
    token = url.rpartition("/")[2]
    assert (await http.get(f"traces/{token[:-3]}AAA")).status_code == 404
    assert (await http.get(f"downloads/{token}/adapter_config.json")).status_code in (400, 404)
