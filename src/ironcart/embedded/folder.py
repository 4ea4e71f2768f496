"""The data folder of a system: one user at a time, its secrets, files written whole or not."""

import base64
import binascii
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

from ironcart.embedded.process import CannotStart
from ironcart.toolkit import signing

LOCK_FILE = "lock"
MASTER_KEY_FILE = "master.key"
MASTER_KEY_BYTES = 32
PASSWORD_BYTES = 16
# The audit's key and, beside it, what it has signed.
AUDIT = "audit"
SIGNING_KEY_FILE = "signing.key"
CHECKPOINTS = "checkpoints"
PRIVATE = 0o600
# How long the children of an `up` that was killed may take to be gone.
LEFTOVERS_TIMEOUT_S = 15.0
LEFTOVERS_POLL_S = 0.1


def write_file(path: Path, text: str) -> None:
    """Put `text` in `path`, readable by its owner only; a crash leaves the old file or the new."""
    beside = path.with_name(path.name + ".new")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    beside.replace(path)


def claim(folder: Path) -> int:
    """Make `folder` if need be and lock it; returns the open lock, held until it is closed.

    Children that inherit the lock hold it too, so that nobody starts a second broker or
    database on the same files while one of them still runs. Raises `CannotStart`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, PRIVATE)
    except OSError as error:
        raise CannotStart(
            f"cannot write to {folder} ({error.strerror}): choose another folder with --data"
        ) from None
    try:
        _acquire(lock, folder)
    except BaseException:
        os.close(lock)
        raise
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _acquire(lock: int, folder: Path) -> None:
    deadline = time.monotonic() + LEFTOVERS_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
            if _lives(holder):
                raise CannotStart(
                    f"another `ironcart up` (pid {holder}) uses {folder}: "
                    "stop it, or choose another folder with --data"
                ) from None
            if time.monotonic() > deadline:
                raise CannotStart(
                    f"processes of an earlier `ironcart up` still use {folder}: end them first"
                ) from None
            time.sleep(LEFTOVERS_POLL_S)
        else:
            return


def _lives(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def master_key(folder: Path, *, may_create: bool, said: str | None = None) -> str:
    """Return the folder's master key (base64 of 32 bytes), made on first use.

    Raises `CannotStart` when the file is damaged, or gone while `may_create` is false, or when
    another one is `said`: what is kept here was made with the folder's.
    """
    path = folder / MASTER_KEY_FILE
    if not path.exists():
        if not may_create:
            raise CannotStart(
                f"{path} is gone, and with it the contacts kept in the database: "
                "put it back, or choose another folder with --data"
            )
        fresh = base64.b64encode(secrets.token_bytes(MASTER_KEY_BYTES)).decode()
        write_file(path, fresh + "\n")
    text = path.read_text().strip()
    try:
        size = len(base64.b64decode(text, validate=True))
    except binascii.Error:
        size = 0
    if size != MASTER_KEY_BYTES:
        raise CannotStart(f"{path} does not hold {MASTER_KEY_BYTES} bytes in base64: put it back")
    if said not in (None, text):
        raise CannotStart(
            f"IRONCART_MASTER_KEY is not the key in {path}, which counts here: unset it, or, to"
            " change the key, write it into that file and the old one into IRONCART_MASTER_KEYS_OLD"
        )
    return text


def signing_key(folder: Path) -> Path:
    """Return the file of the key that the audit trail is signed with, made on first use.

    Raises `CannotStart` when it is gone although checkpoints were signed with it.
    """
    path = folder / AUDIT / SIGNING_KEY_FILE
    if not path.exists():
        if any((folder / AUDIT / CHECKPOINTS).glob("*.jsonl")):
            raise CannotStart(
                f"{path} is gone, and checkpoints were signed with it: put it back, or keep"
                f" {path.name}.pub with {folder / AUDIT / CHECKPOINTS} elsewhere"
            )
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        signing.generate(path)
    return path


def passwords(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the password of each name, kept in `path`; one that is missing is made.

    A damaged file is made anew: who asks for passwords here is also told them at every start.
    """
    try:
        kept = {name: str(password) for name, password in json.loads(path.read_text()).items()}
    except (FileNotFoundError, ValueError, AttributeError):
        kept = {}
    found = {name: kept.get(name) or secrets.token_hex(PASSWORD_BYTES) for name in names}
    if found != kept:
        write_file(path, json.dumps(found, indent=1) + "\n")
    return found
