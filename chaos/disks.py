"""Disks of our own for broker and database: an ext4 image each, to be filled or to lose power."""

import asyncio
import contextlib
import fcntl
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

IMAGE_BYTES = 6 * 1024**3
FOLDERS = {"broker": "nats", "postgres": "postgres"}
# linux/ext4.h: stop the file system at once, without flushing its journal.
EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = (2).to_bytes(4, "little")
UNSYNCED = "chaos-unsynced"
TOOLS = ("mkfs.ext4", "losetup", "mount", "umount")
RELEASED_WITHIN_S = 10.0
COMMAND_TIMEOUT_S = 60


@cache
def lacking() -> str:
    """Say what is missing for disks of our own; nothing when all is there."""
    if os.geteuid() != 0:
        return "only root can mount disks"
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"{', '.join(missing)} not installed"
    try:
        _run("losetup", "-f")
    except (OSError, subprocess.SubprocessError):
        return "no loop devices here"
    return ""


def mount_of(data: Path, part: str) -> Path:
    """Return the folder that is the disk of `broker` or `postgres`."""
    return data / FOLDERS[part]


def attach(data: Path) -> None:
    """Make a disk each for broker and database, before the system starts."""
    for part, name in FOLDERS.items():
        mount = mount_of(data, part)
        mount.mkdir(parents=True, exist_ok=True)
        image = data / f"{name}.img"
        with image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        # Nothing but the database's own files may lie in its folder.
        _run("mkfs.ext4", "-qF", "-m", "0", str(image))
        _run("mount", "-o", "loop", str(image), str(mount))
        with contextlib.suppress(OSError):
            (mount / "lost+found").rmdir()


def detach(data: Path) -> None:
    """Give the disks back; the images stay."""
    for name in FOLDERS.values():
        if os.path.ismount(data / name):
            with contextlib.suppress(subprocess.SubprocessError):
                _run("umount", "-l", str(data / name))


def fill(mount: Path) -> Path:
    """Take every block that is left; returns the file that has them."""
    filler = mount / "chaos-filler"
    with filler.open("wb") as file:
        left = os.statvfs(mount)
        with contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, left.f_bavail * left.f_frsize)
        size = file.seek(0, os.SEEK_END)
        with contextlib.suppress(OSError):
            while True:
                os.posix_fallocate(file.fileno(), size, left.f_frsize)
                size += left.f_frsize
    return filler


def lose_power(mount: Path) -> None:
    """Stop the file system: nothing more reaches the disk, and what was not synced never will.

    Leaves something that was not synced, for `kept_unsynced` to look for.
    """
    (mount / UNSYNCED).write_bytes(b"not synced")
    folder = os.open(mount, os.O_RDONLY)
    try:
        fcntl.ioctl(folder, EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH)
    finally:
        os.close(folder)


def kept_unsynced(mount: Path) -> bool:
    """Say whether what was written just before the power failed is there, as it must not be."""
    marker = mount / UNSYNCED
    kept = marker.exists() and marker.stat().st_size > 0
    marker.unlink(missing_ok=True)
    return kept


async def mount_again(mount: Path) -> None:
    """Bring the disk back as it was when the power went."""
    image = mount.with_name(f"{mount.name}.img")
    async with asyncio.timeout(RELEASED_WITHIN_S):
        while True:
            try:
                _run("umount", str(mount))
                break
            except subprocess.CalledProcessError:
                await asyncio.sleep(0.1)
    _run("mount", "-o", "loop", str(image), str(mount))


def _run(*argv: str) -> None:
    subprocess.run(  # noqa: S603 - words of ours
        argv, check=True, capture_output=True, timeout=COMMAND_TIMEOUT_S
    )
