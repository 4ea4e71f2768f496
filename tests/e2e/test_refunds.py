"""An operator gives money back, and every invariant still holds."""

import aiohttp

from shopping import Shop, System, until


async def test_a_confirmed_order_is_refunded_in_parts_and_stays_confirmed(
    shop: Shop, system: System
) -> None:
    order_id = await shop.place(await shop.stocked())
    assert (await shop.ended(order_id))["status"] == "confirmed"
    path = f"/payments/{order_id}/refunds"
    for n, body in enumerate(({"amount": 5.00, "reason": "damaged"}, None), 1):
        status, answer = await shop.ask("POST", "payments", path, body)
        assert (status, answer["status"]) == (202, "op_refunding"), answer

        async def told(n: int = n) -> bool:
            return (await shop.audited(order_id)).count("RefundIssued") == n

        await until(told)
    payment = await shop.get("payments", f"/payments/{order_id}")
    charge = await shop.charge(order_id)

    assert (payment["status"], payment["refunded"]) == ("succeeded", 19.99)
    assert (charge["captured"], charge["refunded"]) == (1_999, 1_999)
    assert (await shop.order(order_id))["status"] == "confirmed"
    system.verify()
    rebuilt = system.cli("rebuild", "payments")
    assert rebuilt.returncode == 0, rebuilt.stdout + rebuilt.stderr


async def test_signed_webhooks_of_the_sandbox_are_heard_and_change_nothing(shop: Shop) -> None:
    endpoint = {
        "url": shop.system.url("payments") + "/webhooks/stripe",
        "secret": "whsec_sandbox",
    }
    status, answer = await shop.ask("POST", "sandbox", "/sandbox/webhooks", endpoint)
    assert status == 200, answer
    try:
        order_id = await shop.place(await shop.stocked())
        assert (await shop.ended(order_id))["status"] == "confirmed"
        metric = 'method="POST",route="/webhooks/stripe",status="200"'

        async def heard() -> bool:
            async with (
                aiohttp.ClientSession(shop.system.url("payments")) as session,
                session.get("/metrics") as answer,
            ):
                return metric in await answer.text()

        await until(heard)
    finally:
        await shop.ask("DELETE", "sandbox", "/sandbox/webhooks")
    charge = await shop.charge(order_id)
    assert (charge["captured"], charge["refunded"]) == (1_999, 0)
