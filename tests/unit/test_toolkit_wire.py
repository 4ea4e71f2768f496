"""What reaches below nats-py writes and reads as nats-py itself does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from ironcart.toolkit.broker.wire import WireClient, answers, publication, read_headers

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
