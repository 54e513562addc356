"""The caller's own key, as the SDK's login and logout ask for it."""

from __future__ import annotations

import httpx
from tinker.cli.auth_api import SelfApiKeyResponse

from services.gateway.stores import Stores


async def test_a_key_is_described_to_who_has_it(http: httpx.AsyncClient, stores: Stores) -> None:
    key, made = await stores.api_keys.create("bob", "laptop")
    answer = await http.get("auth/apikey/me", headers={"x-api-key": key})
    described = SelfApiKeyResponse.model_validate(answer.json())
    assert (described.name, described.key_id) == ("laptop", int(made.key_id, 16))
    assert described.details.user_details.email == "bob"
    assert key not in answer.text


async def test_a_key_can_revoke_itself_alone(http: httpx.AsyncClient, stores: Stores) -> None:
    keys = [(await stores.api_keys.create("bob"))[0] for _ in range(2)]
    assert (await http.delete("auth/apikey/me", headers={"x-api-key": keys[0]})).status_code == 204
    statuses = [(await http.get("auth/apikey/me", headers={"x-api-key": key})).status_code for key in keys]
    assert statuses == [401, 200]
    assert (await http.get("auth/apikey/me")).status_code == 200, "another tenant's is not touched"
