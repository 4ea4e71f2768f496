"""Runs the sandbox: `python -m ironcart.embedded.sandbox --data DIR --port P --smtp-port Q`."""

import argparse
import asyncio
import gc
import signal
import socket
import sys
from pathlib import Path

import uvloop

from ironcart.embedded.sandbox.book import Book
from ironcart.embedded.sandbox.control import Control
from ironcart.embedded.sandbox.faults import Fault, Faults
from ironcart.embedded.sandbox.front import Front
from ironcart.embedded.sandbox.http import HttpServer
from ironcart.embedded.sandbox.journal import JournalError
from ironcart.embedded.sandbox.logs import log, take_over_logging
from ironcart.embedded.sandbox.mail import MailServer
from ironcart.embedded.sandbox.mailbox import Mailbox
from ironcart.embedded.sandbox.stripe_api import StripeApi
from ironcart.embedded.sandbox.webhooks import Webhooks

HOST = "127.0.0.1"
FOLDER = "sandbox"
DEFAULT_KEY_LIFE_S = 86_400.0


def _bind(port: int) -> socket.socket:
    """Take the port; it accepts only once everything is loaded."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((HOST, port))
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise SystemExit(f"cannot listen on {HOST}:{port}: {why}") from error
    sock.setblocking(False)
    return sock


def _fault_changed(what: str, fault: Fault) -> None:
    log("info", f"Fault {what}", mode=fault.mode, rate=fault.rate, seconds=fault.seconds)


async def _run(data: Path, http_sock: socket.socket, smtp_sock: socket.socket, life: float) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    faults = Faults(_fault_changed)
    folder = data / FOLDER
    book = Book(folder / "ledger.jsonl", life)
    mailbox = Mailbox(folder / "mail.jsonl")
    webhooks = Webhooks(folder / "webhooks.json")
    api = StripeApi(book, faults, webhooks.tell)
    control = Control(book, mailbox, faults, webhooks)
    http_server = HttpServer(Front(api, control, faults))
    mail_server = MailServer(mailbox, faults)
    # What has been loaded stays; the collector need not walk over it again and again.
    gc.collect()
    gc.freeze()
    await mail_server.start(smtp_sock)
    await http_server.start(http_sock)
    log(
        "info",
        "Sandbox started",
        url=f"http://{HOST}:{http_sock.getsockname()[1]}",
        smtp=f"{HOST}:{smtp_sock.getsockname()[1]}",
        intents=len(book.ledger.intents()),
        mail=len(mailbox.list()),
    )
    await stopping.wait()
    http_server.stop()
    mail_server.stop()
    await webhooks.close()
    book.close()
    mailbox.close()


def main() -> int:
    """Read the arguments and serve until SIGTERM; 0 then, 1 when it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m ironcart.embedded.sandbox")
    parser.add_argument(
        "--data", type=Path, required=True, help="the data folder; ours is its sandbox/"
    )
    parser.add_argument("--port", type=int, default=0, help="HTTP port; 0 takes a free one")
    parser.add_argument("--smtp-port", type=int, default=0, help="SMTP port; 0 takes a free one")
    parser.add_argument(
        "--key-life-s",
        type=float,
        default=DEFAULT_KEY_LIFE_S,
        help="how long an idempotency key is remembered, in seconds",
    )
    arguments = parser.parse_args()
    take_over_logging()
    http_sock, smtp_sock = _bind(arguments.port), _bind(arguments.smtp_port)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(arguments.data, http_sock, smtp_sock, arguments.key_life_s))
    except (JournalError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
