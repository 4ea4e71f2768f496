"""What reaches below nats-py writes and reads as nats-py itself does."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.protocol.parser import Parser

from ironcart.toolkit.broker.wire import WireClient, answers, publication, read_headers
from ironcart.toolkit.topology import MESSAGE_BYTES_MAX

TOKENS = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=20)
VALUES = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), max_size=40)


class Transport:
    """Stands where the connection does, and keeps what is written."""

    def __init__(self) -> None:
        self.written = b""

    async def say(self, subject: str, body: bytes, headers: dict[str, str] | None) -> bytes:
        client = Client()
        await client._send_publish(subject, "", body, len(body), headers)
        return b"".join(client._pending)


@given(headers=st.dictionaries(TOKENS, VALUES, min_size=1, max_size=5), body=st.binary())
async def test_a_publication_is_what_the_client_itself_would_send(
    headers: dict[str, str], body: bytes
) -> None:
    theirs = await Transport().say("events.said", body, headers)
    assert publication("events.said", headers, body).split() == theirs.split()


async def test_answers_are_what_the_client_itself_would_send() -> None:
    theirs = await Transport().say("$JS.ACK.one", b"+ACK", None)
    assert answers(["$JS.ACK.one", "$JS.ACK.two"], b"+ACK").split() == [
        *theirs.split(),
        *theirs.replace(b"one", b"two").split(),
    ]


@given(
    st.lists(
        st.one_of(
            st.builds(lambda name, value: f"{name}: {value}".encode(), TOKENS, VALUES),
            st.sampled_from(
                [b"a:b", b"a :  b ", b"no colon", b"two words: x", b"\xff: x", b"a: \xff"]
            ),
            st.binary(max_size=12).filter(lambda raw: b"\r" not in raw and b"\n" not in raw),
        ),
        max_size=6,
    )
)
def test_headers_are_read_as_the_client_itself_reads_them(lines: list[bytes]) -> None:
    raw = b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    theirs = Client._parse_header_lines(raw)
    ours = read_headers(b"NATS/1.0\r\n" + raw)
    assert {name: ours[name] for name in theirs if name.isalnum()} == {
        name: value for name, value in theirs.items() if name.isalnum()
    }


@pytest.mark.parametrize(
    ("head", "status"),
    [(b"NATS/1.0 404 No Messages\r\n\r\n", "404"), (b"NATS/1.0 100\r\n\r\n", "100")],
)
async def test_a_listener_hears_statuses_and_messages_in_order(head: bytes, status: str) -> None:
    client, heard = WireClient(), list[tuple[str, str, bytes, dict[str, str]]]()
    client._subs[7] = None  # type: ignore[assignment] # only that there is one is looked at
    client._listeners[7] = lambda *message: heard.append(message)
    await client._process_msg(7, b"in", b"", b"", head)
    await client._process_msg(7, b"in", b"back", b"body", b"NATS/1.0\r\nA: b\r\n\r\n")
    await client._process_msg(7, b"in", b"", b"bare", b"")
    assert heard[0][3]["Status"] == status
    assert heard[1:] == [("in", "back", b"body", {"A": "b"}), ("in", "", b"bare", {})]


async def test_a_listener_that_fails_does_not_make_the_client_deaf() -> None:
    client, errors = WireClient(), list[Exception]()

    async def note(error: Exception) -> None:
        errors.append(error)

    def fail(*_: object) -> None:
        raise ValueError("cannot read this")

    client._error_cb = note
    client._subs[7] = None  # type: ignore[assignment]
    client._listeners[7] = fail
    await client._process_msg(7, b"in", b"$JS.ACK.odd", b"", b"")
    assert [str(error) for error in errors] == ["cannot read this"]


LISTENER, GONE, USUAL = 7, 8, 9
HEADERS = b"NATS/1.0\r\nNats-Msg-Id: 1\r\nA: \r\n\r\n"


class Recorder(WireClient):
    """Notes what it is told, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[object] = []
        self._subs = {LISTENER: None, USUAL: None}  # type: ignore[dict-item]
        for sid in (LISTENER, GONE):
            self._listeners[sid] = lambda *message: self.told.append(message)

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        if sid == USUAL:
            self.told.append((sid, subject, reply, data, headers))
        else:
            await super()._process_msg(sid, subject, reply, data, headers)

    async def _process_ping(self) -> None:
        self.told.append("ping")

    async def _process_err(self, err_msg: str) -> None:
        self.told.append(err_msg)
        self._ps.reset()


def delivered(sid: int, body: bytes, reply: bytes = b"$JS.ACK.1 ") -> bytes:
    head, size = len(HEADERS), len(HEADERS) + len(body)
    return b"HMSG events.said %d %b%d %d\r\n%b%b\r\n" % (sid, reply, head, size, HEADERS, body)


BODIES = st.sampled_from([b"", b"{}", b"\r\n", b"HMSG a 7 b 12 12\r\n", b"x" * 300])
SAID = st.one_of(
    st.builds(delivered, st.sampled_from([LISTENER, LISTENER, USUAL, GONE, 999]), BODIES),
    st.builds(delivered, st.just(LISTENER), BODIES, st.just(b"")),
    st.builds(lambda body: b"MSG a 9 %d\r\n%b\r\n" % (len(body), body), BODIES),
    st.builds(lambda body: b"MSG a 7 back %d\r\n%b\r\n" % (len(body), body), BODIES),
    st.sampled_from(
        [
            b"PING\r\n",
            b"+OK\r\n",
            b"HMSG in 7 16 16\r\nNATS/1.0 100\r\n\r\n\r\n",
            b"HMSG in 7 back 16 17\r\nNATS/1.0 408\r\n\r\n!\r\n",
        ]
    ),
)


async def heard(client: Recorder, said: bytes, cuts: list[int]) -> list[object]:
    """What a client is told when data comes in pieces, and what it keeps for the next one."""
    places = [0, *sorted({cut % (len(said) + 1) for cut in cuts}), len(said)]
    for begin, end in pairwise(places):
        await client._ps.parse(said[begin:end])
    return [*client.told, bytes(client._ps.buf), client._ps.state]


@given(st.lists(SAID, max_size=8), st.integers(0, 40), st.lists(st.integers(0, 4_000), max_size=8))
async def test_wherever_data_is_cut_the_same_is_heard_as_from_the_clients_own_parser(
    messages: list[bytes], lacking: int, cuts: list[int]
) -> None:
    said = b"".join(messages)
    said = said[: max(0, len(said) - lacking)]
    theirs = Recorder()
    theirs._ps = Parser(theirs)
    assert await heard(Recorder(), said, cuts) == await heard(theirs, said, cuts)


async def test_one_byte_at_a_time_is_heard_as_well_as_all_at_once() -> None:
    said = delivered(LISTENER, b"{}") * 3 + b"PING\r\n" + delivered(LISTENER, b"y" * 40)
    at_once = await heard(Recorder(), said, [])
    assert await heard(Recorder(), said, list(range(len(said)))) == at_once
    assert len(at_once) == 4 + 1 + 2


async def test_the_largest_message_is_heard_though_it_comes_in_many_pieces() -> None:
    said = delivered(LISTENER, b"z" * MESSAGE_BYTES_MAX) * 2
    found = await heard(Recorder(), said, list(range(0, len(said), 32_768)))
    assert [len(each[2]) for each in found[:2]] == [MESSAGE_BYTES_MAX] * 2  # type: ignore[index]


async def test_what_came_over_a_connection_that_was_given_up_is_not_heard() -> None:
    client = Recorder()
    said = b"-ERR 'Stale Connection'\r\n" + delivered(LISTENER, b"{}")
    assert await heard(client, said, []) == ["'stale connection'", b"", client._ps.state]
