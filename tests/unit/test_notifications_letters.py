"""Letters are correct mail, whatever is in the names and addresses they are made from."""

import email
import email.policy
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironcart.services.notifications.gateway import (
    Letter,
    Recipient,
    Stationery,
    UnusableAddress,
    hash_key,
    mail_server,
    recipient_hash,
)
from ironcart.toolkit.vault import new_master_key

LINE_BYTES_MAX = 998
QUOTED_LINE_BYTES_MAX = 76
ANY_TEXT = st.text(st.characters(codec="utf-8", categories=None), max_size=150)

stationery = Stationery("The Shop <orders@ironcart.example>")


def write(
    template: str = "confirmed",
    name: str = "Anna",
    address: str = "anna@b.example",
    reason: str | None = None,
) -> Letter:
    return stationery.write(
        template,
        Recipient(address, name, "00ff"),
        order_id="ORD-1",
        amount="39.98 EUR",
        reason=reason,
    )


def read(letter: Letter) -> EmailMessage:
    message = email.message_from_bytes(letter.content, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    return message


def bodies(message: EmailMessage) -> tuple[str, str]:
    text, page = message.get_body(("plain",)), message.get_body(("html",))
    assert text is not None
    assert page is not None
    return text.get_content(), page.get_content()


def test_a_letter_says_what_happened_in_text_and_in_html() -> None:
    message = read(write())
    assert message["From"] == "The Shop <orders@ironcart.example>"
    assert message["To"] == "Anna <anna@b.example>"
    assert message["Subject"] == "Your order ORD-1 is confirmed"
    assert message["X-Ironcart-Order-Id"] == "ORD-1"
    for body in bodies(message):
        assert "ORD-1" in body
        assert "39.98 EUR" in body
        assert "Hello Anna," in body


@pytest.mark.parametrize(
    ("template", "reason", "words"),
    [
        ("rejected", "out_of_stock", "because one of the items is no longer in stock."),
        ("rejected", "payment_declined", "because the payment was declined."),
        ("rejected", "something_new", "could not be accepted."),
        ("cancelled", "customer", "cancelled, as you asked."),
        ("cancelled", "expired", "cancelled, because it could not be completed in time."),
        ("cancelled", None, "cancelled."),
    ],
)
def test_reasons_are_told_in_words(template: str, reason: str | None, words: str) -> None:
    for body in bodies(read(write(template, reason=reason))):
        assert words in body.replace("\n", " ")


def test_the_same_letter_has_the_same_message_id_and_another_has_another() -> None:
    assert write().message_id == write(name="Otto").message_id
    assert write().message_id != write("cancelled").message_id
    assert read(write())["Message-ID"] == f"<{write().message_id}>"


@given(name=ANY_TEXT)
def test_no_name_can_add_a_header_or_break_the_letter(name: str) -> None:
    letter = write(name=name)
    message = read(letter)
    assert message.keys() == read(write(name="")).keys()
    assert message["To"].addresses[0].addr_spec == "anna@b.example"
    assert letter.content.count(b"\r\n") == letter.content.count(b"\n")
    assert letter.content.endswith(b"--\r\n")
    assert b"\r\n.\r\n" not in letter.content
    assert max(map(len, letter.content.split(b"\r\n"))) <= LINE_BYTES_MAX
    text, _ = bodies(message)
    assert text.startswith("Hello")


@given(name=ANY_TEXT, amount=st.from_regex(r"[0-9,.]{1,200} [A-Z]{3}", fullmatch=True))
@pytest.mark.parametrize("template", ["confirmed", "rejected", "cancelled"])
def test_quoted_lines_are_as_short_as_they_must_be_and_say_the_same_when_read(
    template: str, name: str, amount: str
) -> None:
    letter = stationery.write(
        template,
        Recipient("anna@b.example", name, "00ff"),
        order_id="ORD-" + 80 * "1",
        amount=amount,
        reason="out_of_stock",
    )
    _, _, quoted = letter.content.partition(b"\r\n\r\n")
    assert max(map(len, quoted.split(b"\r\n"))) <= QUOTED_LINE_BYTES_MAX
    text, _ = bodies(read(letter))
    shown = " ".join("".join(c if c.isprintable() else " " for c in name).split())[:100]
    assert text.startswith(f"Hello {shown}," if shown else "Hello,")
    assert f"ORD-{80 * '1'} " in text
    assert template == "confirmed" or f" over {amount} " in text


def test_a_percent_sign_is_nothing_special() -> None:
    text, page = bodies(read(write(name="100% %(amount)s")))
    assert "Hello 100% %(amount)s," in text
    assert "Hello 100% %(amount)s," in page


def test_a_name_is_text_in_html_too() -> None:
    _, page = bodies(read(write(name='<script>alert("x")</script> & Söhne')))
    assert "<script>" not in page
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; Söhne" in page


@pytest.mark.parametrize(
    "address",
    [
        "",
        "anna",
        "@b.example",
        "anna@",
        "a b@c.example",
        "anna@b.example\r\nBcc: x@y.example",
        "anna@b.example>\r\nDATA",
        "<anna@b.example>",
        '"anna"@b.example',
        "anna@b..example",
        "anna@[127.0.0.1]",
        "anna\x00@b.example",
        "anna\u202e@b.example",
        "a" * 65 + "@b.example",
        "anna@" + "b" * 64 + ".example",
        "an,na@b.example",
    ],
)
def test_what_is_no_address_is_not_written_to(address: str) -> None:
    with pytest.raises(UnusableAddress):
        write(address=address)


def test_an_international_address_asks_for_smtputf8_only_when_it_has_to() -> None:
    by_domain = write(address="anna@bücher.example")
    assert by_domain.recipient == b"anna@xn--bcher-kva.example"
    assert not by_domain.international
    assert write(address="zoë@b.example").international


def test_a_recipient_hash_needs_the_key_and_forgets_letter_case() -> None:
    key, other = hash_key(new_master_key()), hash_key(new_master_key())
    assert recipient_hash(key, "Anna@B.example ") == recipient_hash(key, "anna@b.example")
    assert recipient_hash(key, "anna@b.example") != recipient_hash(other, "anna@b.example")
    assert len(recipient_hash(key, "anna@b.example")) == 16


def test_a_mail_servers_address_is_read_with_its_credentials() -> None:
    server = mail_server("smtps://shop%40b.example:p%2Fw@mail.example")
    assert (server.host, server.port, server.tls) == ("mail.example", 465, True)
    assert (server.user, server.password) == ("shop@b.example", "p/w")
    assert "p/w" not in repr(server)
    assert mail_server("smtp://127.0.0.1:2525").port == 2525


@pytest.mark.parametrize("url", ["", "http://x", "smtp://", "smtp://host:port", "host:25"])
def test_a_wrong_mail_servers_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"smtp|[Pp]ort"):
        mail_server(url)
