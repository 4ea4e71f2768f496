"""Webhooks without a network: signatures, who may be called, what is said, and when to give up."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec.structs import replace as changed

from ironcart.services.notifications.api.webhooks import URL_PATTERN
from ironcart.services.notifications.gateway import (
    SECRET_PATTERN,
    SecretBox,
    may_be_called,
    new_secret,
    read_secret,
    write_secret,
)
from ironcart.services.notifications.gateway.addresses import is_public
from ironcart.services.notifications.gateway.signatures import sign
from ironcart.services.notifications.handlers.intake import deliveries_of
from ironcart.services.notifications.handlers.keys import job_key, notice_key
from ironcart.services.notifications.handlers.settling import fact_of
from ironcart.services.notifications.handlers.webhooks import (
    HELD_S_MAX,
    RETRY_FOR_S,
    Delivering,
    WebhookDelivery,
    body_of,
    held_s,
    webhook_id,
)
from ironcart.services.notifications.store import Notice, Told, WebhookEndpoint
from ironcart.toolkit.history import Cause
from ironcart.toolkit.outcomes import Unavailable
from ironcart.toolkit.resilience import BreakerOpen
from ironcart.toolkit.telemetry import context
from ironcart.toolkit.vault import new_master_key

ENDED_AT = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
MAIL = Notice(
    "ORD-1",
    "confirmed",
    "C-1",
    "1,039.90",
    "EUR",
    None,
    "ciphertext",
    Cause("t", context({})),
    ended_at=ENDED_AT,
)
BOX = SecretBox(new_master_key())
ENDPOINT = WebhookEndpoint(
    "WHE-1", "https://a.example", "hash", ["order.confirmed"], BOX.seal("WHE-1", b"s" * 24)
)
(DELIVERY,) = deliveries_of([MAIL], [ENDPOINT])


class Answering:
    """Stands for the network: every call comes to the same."""

    def __init__(self, what: bool | Unavailable) -> None:
        self.what, self.calls = what, 0

    async def deliver(self, *_: Any) -> bool:
        self.calls += 1
        if isinstance(self.what, Unavailable):
            raise self.what
        return self.what


async def told(
    what: bool | Unavailable, delivery: WebhookDelivery = DELIVERY, attempts: int = 0
) -> Told:
    return await Delivering(Answering(what), BOX).call(delivery, attempts)  # type: ignore[arg-type]


def aged(seconds: float) -> WebhookDelivery:
    return replace(DELIVERY, notice=changed(DELIVERY.notice, due_for_s=seconds))


def test_a_signature_is_that_of_the_specifications_test_vector() -> None:
    secret = read_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("length", [24, 25, 26, 32, 63, 64])
def test_a_secret_of_24_to_64_bytes_is_read_as_it_was_written(length: int) -> None:
    text = write_secret(b"\xff" * length)
    assert re.search(SECRET_PATTERN, text)
    assert read_secret(text) == b"\xff" * length


@pytest.mark.parametrize(
    "text",
    [
        *(write_secret(b"\xff" * length) for length in (0, 1, 23, 65, 66, 100)),
        write_secret(b"\xff" * 32) + "\n",
        write_secret(b"\xff" * 32).removeprefix("whsec_"),
        "whsec_" + "A" * 33,
        "whsec_" + "-" * 32,
    ],
)
def test_nothing_else_is_a_secret(text: str) -> None:
    with pytest.raises(ValueError, match="not a secret"):
        read_secret(text)


def test_a_kept_secret_opens_for_its_endpoint_alone_and_with_its_key_alone() -> None:
    secret = new_secret()
    sealed = BOX.seal("WHE-1", secret)
    assert BOX.open("WHE-1", sealed) == secret
    assert secret not in sealed
    for box, endpoint_id in ((BOX, "WHE-2"), (SecretBox(new_master_key()), "WHE-1")):
        with pytest.raises(Unavailable, match="MASTER_KEY"):
            box.open(endpoint_id, sealed)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "::1"),
        *("169.254.169.254", "100.64.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
        *("224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "198.18.0.1", "203.0.113.1"),
        *("::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1"),
        *("::ffff:8.8.8.8", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "fec0::1"),
    ],
)
def test_an_address_that_is_not_for_everybody_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700::1111"])
def test_an_address_on_the_internet_is_public(address: str) -> None:
    assert is_public(address)


def test_a_private_address_in_a_url_is_seen_and_a_name_is_left_for_later() -> None:
    assert not may_be_called("https://10.0.0.1:8443/x", allow_private=False)
    assert may_be_called("https://10.0.0.1:8443/x", allow_private=True)
    assert may_be_called("https://8.8.8.8/", allow_private=False)
    assert may_be_called("https://localhost/", allow_private=False)


@pytest.mark.parametrize(
    "url",
    [
        *("http://a", "https://shop.example", "https://shop.example:65535/hooks?a=b&c=%2F"),
        *("https://10.0.0.1/x", "http://a_b.example/?q", "https://x.example?q=1"),
    ],
)
def test_a_url_is_taken(url: str) -> None:
    assert re.search(URL_PATTERN, url)
    assert may_be_called(url, allow_private=True)


@pytest.mark.parametrize(
    "url",
    [
        *("", "a.example", "ftp://a.example", "https://", "https:///x", "https://u:p@a.example"),
        *("https://u@a.example", "https://a.example:0", "https://a.example:65536", "https://a b"),
        *("https://a.example/#x", "https://a.example/\n", "https://a..b", "https://-a.example"),
        *("https://[::1]/", "https://a.example/%zz", "https://ä.example", "https://a.example/ä"),
        f"https://{'a' * 64}.example",
    ],
)
def test_what_is_no_url_of_ours_is_refused(url: str) -> None:
    assert not may_be_called(url, allow_private=True)


def test_each_endpoint_that_wants_the_event_gets_a_delivery_without_the_contact() -> None:
    other = replace(ENDPOINT, endpoint_id="WHE-2", events=["order.rejected", "order.cancelled"])
    third = replace(ENDPOINT, endpoint_id="WHE-3", events=["order.rejected", "order.confirmed"])
    made = deliveries_of([MAIL], [ENDPOINT, other, third])
    assert [each.notice.endpoint_id for each in made] == ["WHE-1", "WHE-3"]
    assert {each.notice.contact for each in made} == {None}
    assert len({webhook_id(each.notice) for each in made}) == 2


def test_the_body_says_how_the_order_ended_and_nothing_personal() -> None:
    assert json.loads(body_of(DELIVERY.notice)) == {
        "type": "order.confirmed",
        "timestamp": "2026-11-21T09:00:00Z",
        "data": {
            "order_id": "ORD-1",
            "customer_id": "C-1",
            "status": "confirmed",
            "amount": 1039.9,
            "currency": "EUR",
            "reason": None,
        },
    }
    assert b'"amount":1039.90,' in body_of(DELIVERY.notice)


@pytest.mark.parametrize("order_id", ["ORD-1", "webhook", "confirmed"])
def test_a_job_says_whether_it_is_mail_or_a_webhook_and_of_what(order_id: str) -> None:
    mail = changed(MAIL, order_id=order_id).key
    hook = changed(DELIVERY.notice, order_id=order_id).key
    assert job_key(mail) == f"{order_id}/confirmed"
    assert job_key(hook) == f"webhook:WHE-1/{order_id}/confirmed"
    assert notice_key(job_key(mail)) == mail
    assert notice_key(job_key(hook)) == hook


async def test_an_answer_ends_a_delivery_and_is_told_under_the_urls_hash() -> None:
    heard, gone = await told(True), await told(False)
    assert heard == Told("hash", webhook_id(DELIVERY.notice), None)
    assert gone.reason == "gone"
    sent = fact_of(DELIVERY.notice, heard, 2)
    assert (sent.version, type(sent.data).__name__) == (2, "NotificationSent")
    assert (sent.data.channel, sent.data.recipient_hash) == ("webhook", "hash")
    assert fact_of(DELIVERY.notice, gone, 1).data.reason == "gone"


async def test_a_deleted_or_disabled_endpoint_is_not_called() -> None:
    for endpoint, reason in (
        (None, "endpoint_deleted"),
        (replace(ENDPOINT, disabled_at=ENDED_AT), "endpoint_disabled"),
    ):
        network = Answering(True)
        work = Delivering(network, BOX)  # type: ignore[arg-type]
        assert (await work.call(replace(DELIVERY, endpoint=endpoint), 0)).reason == reason
        assert network.calls == 0


async def test_a_failure_is_tried_again_later_and_later_for_a_day_and_then_given_up() -> None:
    waits = []
    for attempts in (0, 5, 40):
        with pytest.raises(Unavailable) as failed:
            await told(Unavailable("500"), aged(RETRY_FOR_S - 1), attempts)
        assert not isinstance(failed.value, BreakerOpen)
        waits.append(failed.value.retry_after_s or 0)
    assert waits[0] <= 1 < waits[1] + 30 < waits[2]
    assert waits[2] <= 1_800
    assert (await told(Unavailable("500"), aged(RETRY_FOR_S))).reason == "gave_up"
    assert (await told(BreakerOpen("open", 1), aged(RETRY_FOR_S))).reason == "gave_up"
    assert (await told(True, aged(RETRY_FOR_S))).reason is None


async def test_what_is_held_back_costs_no_attempt_and_looks_again_the_later_the_older_it_is() -> (
    None
):
    with pytest.raises(BreakerOpen) as held:
        await told(BreakerOpen("open", 7.0), aged(0))
    assert held.value.retry_after_s == 7.0
    assert 7 + 36 <= held_s(7, 3_600) <= 7 + 360
    assert held_s(7, RETRY_FOR_S) <= 7 + HELD_S_MAX
