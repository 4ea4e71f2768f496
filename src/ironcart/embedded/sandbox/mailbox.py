"""Every mail that was accepted, on disk; only an index of them is kept in memory."""

import email
import re
import time
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.policy import default as default_policy
from pathlib import Path
from typing import Any

import msgspec

from ironcart.embedded.sandbox.journal import Journal, JournalError

_MESSAGE_ID, _SUBJECT, _ORDER_ID = b"\nmessage-id:", b"\nsubject:", b"\nx-ironcart-order-id:"
_VALUE = re.compile(rb".*(?:\n[ \t].*)*")
_FOLD = re.compile(r"\n[ \t]+")


class Mail(msgspec.Struct, frozen=True, gc=False):
    """One accepted delivery: `message_id` without its angle brackets, `to` as in the envelope."""

    message_id: str
    to: str
    subject: str
    order_id: str | None


class _Line(msgspec.Struct, frozen=True, gc=False):
    at: float
    mail: Mail
    # Latin-1 gives every byte one character and back: any message can be kept in JSON.
    raw: str


class _IndexLine(msgspec.Struct, frozen=True, gc=False):
    mail: Mail


class Mailbox:
    """Accepted mail, oldest first. The same message delivered twice is there twice."""

    def __init__(self, path: Path) -> None:
        self._entries: list[tuple[Mail, int]] = []
        self._journal = Journal(path)
        decoder = msgspec.json.Decoder(_IndexLine)
        for offset, line in self._journal.lines():
            try:
                self._entries.append((decoder.decode(line).mail, offset))
            except msgspec.DecodeError as error:
                message = (
                    f"{path} is damaged at byte {offset} ({error}); move it away to start anew"
                )
                raise JournalError(message) from error

    def keep(self, recipients: list[str], content: bytes) -> Mail:
        """Write a message down; only then may the server say 250."""
        message_id, subject, order_id = _headers(content, _MESSAGE_ID, _SUBJECT, _ORDER_ID)
        message_id = message_id.strip("<>")
        mail = Mail(
            message_id=message_id or f"{len(self._entries)}.no-message-id@sandbox",
            to=", ".join(recipients),
            subject=_decoded(subject),
            order_id=order_id or None,
        )
        line = msgspec.json.encode(_Line(time.time(), mail, content.decode("latin-1")))
        self._entries.append((mail, self._journal.append(line)))
        return mail

    def list(self, order_id: str | None = None) -> list[Mail]:
        """All mail, or that of one order."""
        return [mail for mail, _ in self._entries if order_id is None or mail.order_id == order_id]

    def read(self, message_id: str) -> dict[str, Any] | None:
        """The latest message of this id (angle brackets or not), parsed; None if there is none."""
        wanted = message_id.strip().strip("<>")
        for mail, offset in reversed(self._entries):
            if mail.message_id == wanted:
                line = msgspec.json.decode(self._journal.read(offset), type=_Line)
                message = email.message_from_bytes(
                    line.raw.encode("latin-1"), policy=default_policy
                )
                return {
                    **msgspec.structs.asdict(mail),
                    "headers": {name: str(value) for name, value in message.items()},
                    "text": _body(message, "plain"),
                    "html": _body(message, "html"),
                }
        return None

    def close(self) -> None:
        """Close the file."""
        self._journal.close()


def _headers(content: bytes, *names: bytes) -> list[str]:
    """These header fields, unfolded, "" for each that is not there; a name is given in lower case,
    between a line's end and a colon. The email package costs twenty times more."""
    head = b"\n" + content.partition(b"\r\n\r\n")[0].replace(b"\r\n", b"\n")
    lower = head.lower()
    values = []
    for name in names:
        at = lower.find(name)
        value = _VALUE.match(head, at + len(name)) if at >= 0 else None
        text = value[0].decode("utf-8", "replace") if value else ""
        values.append(_FOLD.sub(" ", text).strip())
    return values


def _decoded(value: str) -> str:
    if "=?" not in value:
        return value
    try:
        return str(make_header(decode_header(value)))
    except (ValueError, LookupError):
        return value


def _body(message: EmailMessage, kind: str) -> str | None:
    part = message.get_body((kind,))
    return None if part is None else str(part.get_content())
