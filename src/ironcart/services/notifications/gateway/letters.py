"""Letters: a template filled in, as the bytes that travel.

Written by hand, and what all letters of a template share only once: `email.message` takes over a
millisecond for each mail.
"""

import base64
import binascii
import hashlib
import hmac
import html
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.header import Header
from email.utils import format_datetime, parseaddr
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from msgspec import Struct

MESSAGE_ID_DOMAIN: Final = "ironcart"
# Published for ever: message ids are uuid5(MESSAGE_NAMESPACE, "<order>/<template>/<hash>").
MESSAGE_NAMESPACE: Final = uuid.UUID("0d6c7a0e-5a1f-5f43-9d1b-6a0b1f2c9e44")
HASH_CHARACTERS: Final = 16
ADDRESS_CHARACTERS_MAX: Final = 254
LOCAL_PART_BYTES_MAX: Final = 64
NAME_CHARACTERS_MAX: Final = 100
HEADER_LINE_CHARACTERS_MAX: Final = 75

_TEMPLATES: Final = ("confirmed", "rejected", "cancelled")
_WHY: Final[Mapping[str, str]] = {
    "out_of_stock": "one of the items is no longer in stock",
    "payment_declined": "the payment was declined",
    "customer": "as you asked",
    "operator": "by our staff",
    "expired": "because it could not be completed in time",
}
# "=_" cannot occur in quoted-printable, so the boundary cannot occur in a part.
_BOUNDARY: Final = "=_ironcart"
# Where a letter's own facts go. Characters for private use: no template has them, and a name loses
# them.
_MARKS: Final[Mapping[str, str]] = {
    "\ue000": "%(order_id)s",
    "\ue001": "%(amount)s",
    "\ue002": "%(name)s",
    "\ue003": "%(name_as_html)s",
}
_ORDER_ID, _AMOUNT, _NAME, _NAME_AS_HTML = _MARKS
_MARK: Final = re.compile(f"([{''.join(_MARKS)}])")
# No quoted local parts: nothing in an address may mean something to SMTP or to a header.
_LOCAL_PART = re.compile(r"[^\s\x00-\x20\x7f-\x9f<>()\[\],;:\\\"@]+\Z")
_DOMAIN = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\Z")


class UnusableAddress(ValueError):
    """Not an address that mail can be sent to."""


class Recipient(Struct, frozen=True):
    """Whom to write to; `hash` stands for the address where it must not be known."""

    address: str
    name: str
    hash: str

    def __repr__(self) -> str:
        return f"Recipient({self.hash})"


class Letter(Struct, frozen=True):
    """A mail ready to travel: `content` has CRLF line ends; whoever sends it doubles its dots.

    `international` says that the address is not ASCII and the server has to know SMTPUTF8.
    """

    message_id: str
    recipient: bytes
    content: bytes
    international: bool

    def __repr__(self) -> str:
        return f"Letter({self.message_id})"


@dataclass(frozen=True, slots=True)
class _Form:
    """A rendered template, to be filled in with `%`: facts in the subject, encoded in the parts."""

    subject: str
    parts: str


def message_id_of(order_id: str, template: str, recipient_hash: str) -> str:
    """The Message-ID of a letter: the same for the same letter, for ever."""
    key = uuid.uuid5(MESSAGE_NAMESPACE, f"{order_id}/{template}/{recipient_hash}")
    return f"{key}@{MESSAGE_ID_DOMAIN}"


class Stationery:
    """Writes letters from one sender; raises `ValueError` when the sender is no address."""

    def __init__(self, sender: str) -> None:
        name, address = parseaddr(sender)
        self.sender = _address(address)
        if not self.sender.isascii():
            raise UnusableAddress("the sender's address must be ASCII")
        self._from = _mailbox(name, self.sender)
        self._environment = Environment(
            loader=PackageLoader("ironcart.services.notifications"),
            autoescape=select_autoescape(("html.j2",)),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            newline_sequence="\r\n",
        )
        self._forms: dict[tuple[str, str, bool], _Form] = {}
        self._date = (0, "")

    def write(
        self, template: str, recipient: Recipient, *, order_id: str, amount: str, reason: str | None
    ) -> Letter:
        """Write one letter; the same one has the same message id for ever.

        `order_id` is a name as in events, `amount` comes with its currency, `reason` is a code.
        Raises `UnusableAddress`.
        """
        address, name = _address(recipient.address), _plain(recipient.name)
        form = self._form(template, _WHY.get(reason or "", ""), bool(name))
        message_id = message_id_of(order_id, template, recipient.hash)
        subject = form.subject % {"order_id": order_id, "amount": amount}
        facts = {
            "order_id": _quoted(order_id),
            "amount": _quoted(amount),
            "name": _quoted(name),
            "name_as_html": _quoted(html.escape(name)),
        }
        content = (
            f"From: {self._from}\r\n"
            f"To: {_mailbox(name, address)}\r\n"
            f"Subject: {_words(subject)}\r\n"
            f"Date: {self._now()}\r\n"
            f"Message-ID: <{message_id}>\r\n"
            f"X-Ironcart-Order-Id: {order_id}\r\n"
            f"{form.parts % facts}"
        )
        return Letter(message_id, address.encode(), content.encode(), not address.isascii())

    def _form(self, template: str, why: str, named: bool) -> _Form:
        """Render a template once for all letters that differ only in their facts."""
        if (form := self._forms.get((template, why, named))) is None:
            facts = {"order_id": _ORDER_ID, "amount": _AMOUNT, "why": why}
            name, name_as_html = (_NAME, _NAME_AS_HTML) if named else ("", "")
            text = self._environment.get_template(f"{template}.txt.j2")
            page = self._environment.get_template(f"{template}.html.j2")
            subject, _, plain = text.render(facts, name=name).partition("\r\n")
            parts = (
                "Auto-Submitted: auto-generated\r\n"
                "MIME-Version: 1.0\r\n"
                f'Content-Type: multipart/alternative; boundary="{_BOUNDARY}"\r\n\r\n'
                f"{_part('plain', plain)}"
                f"{_part('html', page.render(facts, name=name_as_html))}"
                f"--{_BOUNDARY}--\r\n"
            )
            form = self._forms[template, why, named] = _Form(_blanks(subject), _blanks(parts))
        return form

    def _now(self) -> str:
        second = int(time.time())
        if second != self._date[0]:
            self._date = (second, format_datetime(datetime.fromtimestamp(second, UTC)))
        return self._date[1]


def hash_key(master_key: str) -> bytes:
    """Derive the key of `recipient_hash` from the master key, which itself never leaves."""
    secret = base64.b64decode(master_key)
    return hmac.digest(secret, b"ironcart notifications recipient", hashlib.sha256)


def recipient_hash(key: bytes, address: str) -> str:
    """Stand for an address, letter case aside; only whoever has the key can try addresses out."""
    digest = hmac.digest(key, address.strip().lower().encode(errors="replace"), hashlib.sha256)
    return digest.hex()[:HASH_CHARACTERS]


def _address(text: str) -> str:
    """Return an address with its domain in ASCII; the local part may be international."""
    local, at, domain = text.strip().rpartition("@")
    try:
        domain = domain if domain.isascii() else domain.encode("idna").decode()
        local_bytes = local.encode()
    except UnicodeError as error:
        raise UnusableAddress("not an address") from error
    usable = (
        at
        and _LOCAL_PART.match(local)
        and local.isprintable()
        and len(local_bytes) <= LOCAL_PART_BYTES_MAX
        and _DOMAIN.match(domain)
        and len(local) + 1 + len(domain) <= ADDRESS_CHARACTERS_MAX
    )
    if not usable:
        raise UnusableAddress("not an address")
    return f"{local}@{domain}"


def _plain(name: str) -> str:
    """A name in one line, without what a terminal or a header could take for something else."""
    clean = name[: 2 * NAME_CHARACTERS_MAX]
    if not clean.isprintable():
        clean = "".join(c if c.isprintable() else " " for c in clean)
    return " ".join(clean.split())[:NAME_CHARACTERS_MAX]


def _mailbox(name: str, address: str) -> str:
    if not name:
        return address
    if name.isascii():
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}" <{address}>'
    return f"{_words(name)}\r\n <{address}>"


def _words(text: str) -> str:
    """A header's text: as it is when it is ASCII, else as RFC 2047 encoded words, folded."""
    if text.isascii():
        return text
    encoded = Header(text, "utf-8", maxlinelen=HEADER_LINE_CHARACTERS_MAX).encode()
    return encoded.replace("\n", "\r\n")


def _part(kind: str, text: str) -> str:
    """One alternative. Marks stand in lines of their own, which end softly, as those before do: so
    no line grows too long, whatever comes in the place of a mark."""
    pieces = (piece for piece in _MARK.split(text) if piece)
    body = "=\r\n".join(piece if piece in _MARKS else _quoted(piece) for piece in pieces)
    return (
        f"--{_BOUNDARY}\r\n"
        f"Content-Type: text/{kind}; charset=utf-8\r\n"
        "Content-Transfer-Encoding: quoted-printable\r\n"
        f"\r\n{body}\r\n"
    )


def _quoted(text: str) -> str:
    """Quoted-printable, in lines that leave room for a soft line end."""
    # It ends lines, also softly, as the text ends its first one, and one more at the end of a line.
    return binascii.b2a_qp(f"{text}\r\n".encode(), istext=True)[:-2].decode("ascii")


def _blanks(form: str) -> str:
    """Make marks what `%` fills in."""
    return _MARK.sub(lambda mark: _MARKS[mark[1]], form.replace("%", "%%"))
