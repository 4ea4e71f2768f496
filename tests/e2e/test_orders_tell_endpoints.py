"""Signed webhooks from the whole system, as the README shows them to storefront developers."""

import base64
import hashlib
import hmac
from collections import defaultdict

from aiohttp import web

from shopping import Shop, until

Calls = dict[str, list[tuple[web.Request, bytes]]]


async def test_an_order_that_ends_is_told_once_and_signed_and_again_to_who_could_not_take_it(
    shop: Shop,
) -> None:
    calls: Calls = defaultdict(list)

    async def answer(request: web.Request) -> web.Response:
        calls[request.path].append((request, await request.read()))
        first = len(calls[request.path]) == 1
        return web.Response(status=500 if first and request.path == "/wavering" else 200)

    app = web.Application()
    app.router.add_post("/{tail}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    here = f"http://127.0.0.1:{runner.addresses[0][1]}"
    endpoints = {}
    for path in ("/steady", "/wavering"):
        body = {"url": here + path, "events": ["order.confirmed"]}
        status, made = await shop.ask("POST", "notifications", "/webhook-endpoints", body)
        assert status == 201, made
        endpoints[path] = made
    try:
        order_id = await shop.place(await shop.stocked())

        async def both_told() -> bool:
            listing = await shop.get("notifications", f"/notifications?order_id={order_id}")
            states = {each["endpoint_id"]: each["state"] for each in listing["items"]}
            return all(states.get(made["id"]) == "sent" for made in endpoints.values())

        await until(both_told)
    finally:
        for made in endpoints.values():
            path = f"/webhook-endpoints/{made['id']}"
            assert (await shop.ask("DELETE", "notifications", path))[0] == 204
        await runner.cleanup()

    for path, made in endpoints.items():
        for request, sent in calls[path]:
            key = base64.b64decode(made["secret"].removeprefix("whsec_"))
            signed = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}."
            digest = hmac.digest(key, signed.encode() + sent, hashlib.sha256)
            expected = f"v1,{base64.b64encode(digest).decode()}"
            assert expected in request.headers["webhook-signature"].split()
    (steady,), wavering = calls["/steady"], calls["/wavering"]
    assert order_id.encode() in steady[1]
    assert len({request.headers["webhook-id"] for request, _ in wavering}) == 1
    assert len({body for _, body in wavering}) == 1
