"""The journal, the book and the mailbox: what is on disk is what was said."""

from pathlib import Path

import pytest

from ironcart.embedded.sandbox.book import Book
from ironcart.embedded.sandbox.cards import APPROVED
from ironcart.embedded.sandbox.journal import READ_CHUNK_BYTES, Journal, JournalError
from ironcart.embedded.sandbox.mailbox import Mailbox
from ironcart.embedded.sandbox.records import Attempt, Draft

NOW = 1_800_000_000.0


def test_records_are_read_back_at_their_offsets(tmp_path: Path) -> None:
    records = [b"{}", b'"' + b"x" * (3 * READ_CHUNK_BYTES) + b'"', b"[1]"]
    journal = Journal(tmp_path / "j")
    offsets = [journal.append(record) for record in records]
    journal.close()

    again = Journal(tmp_path / "j")

    assert [again.read(offset) for offset in offsets] == records
    assert list(again.lines()) == [
        (offset, record + b"\n") for offset, record in zip(offsets, records, strict=True)
    ]
    again.close()


@pytest.mark.parametrize("torn", [b"{", b'{"a":"' + b"x" * (2 * READ_CHUNK_BYTES)])
def test_a_torn_last_line_is_cut(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "j"
    path.write_bytes(b"[1]\n[2]\n" + torn)

    journal = Journal(path)
    journal.append(b"[3]")
    journal.close()

    assert path.read_bytes() == b"[1]\n[2]\n[3]\n"


def test_a_file_of_nothing_but_a_torn_line_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(b'{"torn')

    Journal(path).close()

    assert path.read_bytes() == b""


def test_a_second_opener_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")

    with pytest.raises(JournalError, match="in use by another sandbox"):
        Journal(tmp_path / "j")
    journal.close()


def test_a_book_knows_its_intents_and_keys_when_it_is_opened_again(tmp_path: Path) -> None:
    book = Book(tmp_path / "l", key_life_s=100)
    draft = Draft(1000, "eur", "pm_card_visa", {"order_id": "ORD-1"})
    created = book.record(book.ledger.create(draft, NOW, lambda _: APPROVED), "k1", "f1")
    assert created.intent is not None
    confirmed = book.ledger.confirm(created.intent.id, Attempt(), NOW, lambda _: APPROVED)
    paid = book.record(confirmed, "k2", "f2")
    book.close()

    again = Book(tmp_path / "l", key_life_s=100)

    assert again.ledger.intents() == [paid.intent]
    assert paid.intent is not None
    assert paid.intent.keys == ("k1", "k2")
    assert again.saved("k1", NOW) == created
    assert again.saved("k2", NOW) == paid
    assert again.saved("k3", NOW) is None
    again.close()


def test_a_key_dies_of_age_or_when_all_are_expired(tmp_path: Path) -> None:
    book = Book(tmp_path / "l", key_life_s=100)
    for key in ("old", "young"):
        change = book.ledger.create(Draft(1, "eur"), NOW, lambda _: APPROVED)
        book.record(change, key, "f")

    assert book.saved("old", NOW + 99) is not None
    assert book.saved("old", NOW + 100) is None
    assert book.expire_keys(NOW) == 1
    assert book.saved("young", NOW) is None
    book.close()
    again = Book(tmp_path / "l", key_life_s=100)
    assert again.saved("young", NOW) is None
    assert len(again.ledger.intents()) == 2
    again.close()


@pytest.mark.parametrize("line", [b"not json\n", b'{"at":1.0,"intent":{"id":"pi_1","seq":3}}\n'])
def test_a_damaged_ledger_is_named_with_its_place(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "l"
    path.write_bytes(line)

    with pytest.raises(JournalError, match="is damaged at byte 0"):
        Book(path, key_life_s=1)


def test_mail_is_listed_and_read_in_full_when_it_is_opened_again(tmp_path: Path) -> None:
    content = (
        "Message-ID: <m-1@shop>\r\nSubject: =?utf-8?q?Ihre_Bestellung_f=C3=BCr_19=E2=82=AC?=\r\n"
        "X-Ironcart-Order-Id:\r\n ORD-1\r\nMIME-Version: 1.0\r\n"
        'Content-Type: multipart/alternative; boundary="b"\r\n\r\n'
        "--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nGrüße\r\n"
        "--b\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<p>Grüße</p>\r\n--b--\r\n"
    ).encode()
    mailbox = Mailbox(tmp_path / "m")
    mailbox.keep(["a@b.example"], content)
    mailbox.keep(["c@d.example", "e@f.example"], b"Subject: bare\r\n\r\n\xff\r\n")
    mailbox.close()

    again = Mailbox(tmp_path / "m")

    first, second = again.list()
    assert (first.message_id, first.order_id) == ("m-1@shop", "ORD-1")
    assert first.subject == "Ihre Bestellung für 19€"
    assert (second.to, second.order_id) == ("c@d.example, e@f.example", None)
    assert again.list("ORD-1") == [first]
    found = again.read("<m-1@shop>")
    assert found is not None
    assert found["text"].strip() == "Grüße"
    assert found["html"].strip() == "<p>Grüße</p>"
    assert found["headers"]["Subject"] == "Ihre Bestellung für 19€"
    assert again.read(second.message_id) is not None
    assert again.read("nobody") is None
    again.close()


def test_headers_are_found_in_any_letter_case_and_never_in_the_body(tmp_path: Path) -> None:
    mailbox = Mailbox(tmp_path / "m")
    head = b"X-Subject: no\r\nSUBJECT:  One\r\n\t two\r\nsubject: second\r\nTo: <a@b>\r\n\r\n"
    kept = mailbox.keep(["a@b"], head + b"\r\nMessage-ID: <in@body>\r\nX-Ironcart-Order-Id: 1\r\n")
    mailbox.close()

    assert (kept.subject, kept.order_id) == ("One two", None)
    assert kept.message_id == "0.no-message-id@sandbox"
