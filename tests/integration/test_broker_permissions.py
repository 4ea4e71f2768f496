"""Nobody does more at the broker than its part, and whoever lacks a permission is heard of."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from broker_matrix import NAMES, Guarded, caller, forbidden, guarded, operations
from heart_parts import Topology, make_schema
from heart_processes import environment, process
from ironcart.cli.permissions import users
from ironcart.embedded.nats_server import Access, NatsServer
from ironcart.embedded.ports import free_port
from ironcart.toolkit.broker import Broker, connection
from ironcart.toolkit.outcomes import Refused, Unavailable
from ironcart.toolkit.permissions import Permissions, of_service
from ironcart.toolkit.telemetry import broker_forbidden
from shopping import until

USERS = (*NAMES, "provision", "operator")


@pytest.fixture(scope="module")
def guarded_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guarded")


@pytest.fixture
async def broker_of_all(guarded_folder: Path) -> AsyncIterator[Guarded]:
    async with guarded(guarded_folder, users()) as found:
        yield found


async def test_everybody_may_do_what_is_its_part_and_nothing_else(broker_of_all: Guarded) -> None:
    tried = operations()

    surprises = [each for user in USERS for each in await broker_of_all.surprises(user, tried)]

    assert set(users()) == set(USERS)
    assert len(tried) > 300
    assert surprises == []


async def test_a_permission_too_many_and_one_too_few_are_both_noticed(tmp_path: Path) -> None:
    tried = operations()
    expected, changed = set(), {}
    for user, allowed in users().items():
        extra = forbidden(user, tried)
        expected.add(f"{user} may {extra}")
        publish = allowed.publish
        if user in NAMES:
            lost = next(each for each in tried if user in each.allowed and each.verb == "PUB")
            expected.add(f"{user} may not {lost}")
            publish = tuple(each for each in publish if each != lost.subject)
            if lost.subject.startswith("dlq."):
                publish = tuple(each for each in publish if not each.startswith("dlq."))
        changed[user] = replace(allowed, publish=(*publish, extra.subject))

    async with guarded(tmp_path, changed) as found:
        surprises = {each for user in USERS for each in await found.surprises(user, tried)}

    assert surprises == expected


async def test_nobody_comes_in_without_the_right_password(broker_of_all: Guarded) -> None:
    for url in (
        broker_of_all.server.url,
        broker_of_all.server.url.replace("//", "//orders:wrong@"),
        broker_of_all.server.url.replace("//", "//stranger:password-of-orders@"),
    ):
        with pytest.raises(Refused, match="the broker refuses the credentials in IRONCART_NATS_"):
            await Broker(url, "orders").connect()


async def test_an_answer_cannot_be_sent_where_acknowledgements_go(broker_of_all: Guarded) -> None:
    password = broker_of_all.access.passwords["orders"]
    async with caller(broker_of_all.server, "orders", password) as orders:
        reply = "$JS.ACK.ORDERS.payments.1.1.1.1.1"
        assert "Permissions Violation" in await orders.refusal(f"PUB orders.created {reply} 0", b"")


async def test_nobody_takes_what_is_for_another_by_naming_its_own_place_behind_it(
    broker_of_all: Guarded,
) -> None:
    """In nine words an acknowledgement is the first place's, and `+NXT` pulls what it has."""
    server, passwords = broker_of_all.server, broker_of_all.access.passwords
    operator = Broker(server.url_for("operator"), "test")
    await operator.connect()
    await operator.request("notifications.sent", b"for audit")
    body = b'+NXT {"batch":100}'
    async with caller(server, "payments", passwords["payments"]) as payments:
        assert not await payments.refusal("SUB _INBOX_payments.> 1")
        for victim in ("NOTIFICATIONS.audit", "ORDERS.inventory"):
            taking = f"$JS.ACK.{victim}.ORDERS.payments.1.1.1 _INBOX_payments.taken"
            assert "Permissions Violation" in await payments.refusal(
                f"PUB {taking} {len(body)}", body
            )
    held = await operator.api("CONSUMER.INFO.NOTIFICATIONS.audit")
    await operator.close()
    assert held["delivered"]["consumer_seq"] == 0


@pytest.mark.parametrize("form", ["older", "newer"])
async def test_a_service_settles_its_own_in_either_form(broker_of_all: Guarded, form: str) -> None:
    server = broker_of_all.server
    operator, audit = (Broker(server.url_for(each), each) for each in ("operator", "audit"))
    await operator.connect()
    await audit.connect()
    await operator.request("payments.failed", b"{}")
    asked = b'{"batch":1,"expires":5000000000}'
    inbox = audit.client.new_inbox()
    coming = await audit.client.subscribe(inbox)
    await audit.client.publish("$JS.API.CONSUMER.MSG.NEXT.PAYMENTS.audit", asked, reply=inbox)
    message = await coming.next_msg(10)
    ack = message.reply if form == "older" else message.reply.replace("ACK.", "ACK._.hash.", 1)

    await audit.client.publish(ack, b"+ACK")
    await audit.catch_up()

    assert not audit.forbids
    if form == "older":

        async def settled() -> bool:
            held = await operator.api("CONSUMER.INFO.PAYMENTS.audit")
            return bool(held["num_ack_pending"] == 0)

        await until(settled)
    await operator.close()
    await audit.close()


async def test_no_answer_that_a_service_may_ask_for_is_an_event_of_another(
    broker_of_all: Guarded,
) -> None:
    """The broker answers to any subject: what a service can have it say must be no event."""
    server, passwords = broker_of_all.server, broker_of_all.access.passwords
    forged = b'{"id":"forged"}'
    async with caller(server, "orders", passwords["orders"]) as orders:
        for subject, body in (
            ("orders.created", forged),
            ("$JS.API.CONSUMER.MSG.NEXT.ORDERS.orders", b'{"batch":1,"expires":50000000}'),
            ("$JS.API.STREAM.MSG.GET.ORDERS", b'{"seq":1,"no_hdr":true}'),
            ("$JS.API.STREAM.INFO.ORDERS", b""),
            ("$JS.API.CONSUMER.INFO.ORDERS.orders", b""),
        ):
            for told in ("payments.succeeded", "$JS.API.STREAM.DELETE.INVENTORY"):
                assert not await orders.refusal(f"PUB {subject} {told} {len(body)}", body)

    operator = Broker(server.url_for("operator"), "test")
    await operator.connect()
    held = (await operator.api("STREAM.INFO.PAYMENTS"))["state"]
    await operator.api("STREAM.INFO.INVENTORY")
    stored = [
        (await operator.api("STREAM.MSG.GET.PAYMENTS", {"seq": seq}))["message"]
        for seq in range(held["first_seq"], held["last_seq"] + 1)
    ]
    await operator.close()
    # What was pulled keeps the subject that it had, which nobody's place in PAYMENTS reads.
    bare = [each for each in stored if each["subject"] == "payments.succeeded"]
    assert len(stored) > len(bare) > 0
    assert "eyJpZCI6ImZvcmdlZCJ9" not in [each.get("data") for each in bare]


async def test_what_the_broker_forbids_is_said_counted_and_remembered(
    broker_of_all: Guarded,
) -> None:
    broker = Broker(broker_of_all.server.url_for("payments"), "payments/pod")
    await broker.connect()
    before = broker_forbidden._value.get()
    assert not broker.forbids

    with structlog.testing.capture_logs() as said:
        for _ in range(2):
            await broker.client.publish("orders.created", b"")
            await broker.catch_up()

    assert broker.forbids
    assert broker_forbidden._value.get() == before + 2
    (line,) = [each for each in said if each["log_level"] == "error"]
    assert line["event"] == "The broker forbids this"
    assert '"orders.created"' in line["error"]
    await broker.close()


async def test_who_may_not_hear_its_own_inbox_ends(
    broker_of_all: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "REQUEST_TIMEOUT_S", 0.2)
    url = broker_of_all.server.url_for("payments")
    broker = Broker(url, "payments/pod")
    broker._user = lambda: "orders"  # type: ignore[method-assign]
    await broker.connect()

    with pytest.raises(Unavailable):
        await broker.api("STREAM.INFO.ORDERS")

    with pytest.raises(Refused, match="lets us hear nothing"):
        await broker.watch()
    await broker.close()


async def test_a_service_that_lacks_a_permission_is_not_ready_and_says_which(
    database_url: str, tmp_path: Path
) -> None:
    of = Topology()
    enough = of_service("beta", of.subjects.values(), [of.beta], (of.pings, of.pongs))
    pulls = f"$JS.API.CONSUMER.MSG.NEXT.{of.beta.stream}.beta"
    users = {
        "test": Permissions((">",), (">",)),
        "beta": replace(enough, publish=tuple(each for each in enough.publish if each != pulls)),
    }
    port = free_port()
    monitor_port = free_port(avoid={port})
    access = Access(users, dict.fromkeys(users, "password"))
    server = NatsServer(tmp_path, port=port, monitor_port=monitor_port, access=access)
    server.start()
    try:
        provisioner = Broker(server.url_for("test"), "test")
        await provisioner.connect()
        await of.provision(provisioner)
        await provisioner.close()
        await make_schema(database_url, "beta")
        environ = environment(server, database_url, NATS_URL=server.url_for("beta"))
        async with process("beta", of, environ, tmp_path) as beta:
            await beta.until_ready(503, start="ok", jetstream="forbids what we need")
            (line,) = beta.said("The broker forbids this")
            assert pulls.lower() in line["error"]
            assert line["level"] == "error"
    finally:
        server.terminate()
