"""Gathers what travels: the environment, Python, and what both are linked with. Nothing else of the
base comes along: no shell, no package manager, nothing that changes its user.

Runs within the build, in the environment's Python: `python rootfs.py INTO`. Bytecode comes with
what services import; the rest is imported rarely, and compiled then.
"""

import importlib
import importlib.util
import py_compile
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ENVIRONMENT = Path(sys.prefix)
STDLIB = Path(sysconfig.get_path("stdlib"))
# Of the standard library: what is for developers and terminals, what would bring databases along,
# and what the base's installer put beside it.
STDLIB_LEFT = (
    *("__pycache__", "_test*", "config-*", "distutils", "ensurepip", "idlelib", "lib2to3"),
    *("pydoc_data", "test", "tkinter", "turtledemo", "_curses*", "curses", "readline.*"),
    *("_dbm.*", "_gdbm.*", "_sqlite3.*", "dbm", "nis.*", "sqlite3"),
    *("dist-packages", "site-packages"),
)
# Of the environment: what only a type checker or a C compiler reads.
ENVIRONMENT_LEFT = ("__pycache__", "*.c", "*.h", "*.pxd", "*.pyi", "*.pyx", "params")
IMPORTED = ("ironcart.cli.services", "ironcart.cli.provision", "ironcart.cli.doctor")
FILES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/ld.so.cache", "/etc/os-release")
INFO = Path("/var/lib/dpkg/info")
USER = 10001


def main(into: Path) -> None:
    """Fill the folder, which is not there yet."""
    for each in map(importlib.import_module, IMPORTED):
        if hasattr(each, "every"):
            each.every()
    copy_tree(into, STDLIB, STDLIB_LEFT)
    copy_tree(into, ENVIRONMENT, ENVIRONMENT_LEFT)
    compile_imported(into)
    for name in ("lib", "lib64"):
        if (link := Path("/", name)).is_symlink():
            (into / name).symlink_to(link.readlink())
    found = {Path(each) for each in FILES if Path(each).exists()}
    found |= {ENVIRONMENT / "bin" / "python", Path(sys.executable).resolve()}
    found |= linked({*into.rglob("*.so*"), *found})
    for each in sorted(found):
        copy_with_links(into, each)
    tell_scanners(into, found)
    for name, mode in (("proc", 0o555), ("sys", 0o555), ("dev", 0o755), ("tmp", 0o1777)):
        (into / name).mkdir()
        (into / name).chmod(mode)
    user = f"ironcart:x:{USER}"
    (into / "etc/passwd").write_text(f"{user}:{USER}::/tmp:/sbin/nologin\n")
    (into / "etc/group").write_text(f"{user}:\n")
    (into / "etc/nsswitch.conf").write_text("hosts: files dns\n")


def copy_tree(into: Path, tree: Path, left: tuple[str, ...]) -> None:
    """All of a tree but what is left behind, by patterns."""
    shutil.copytree(tree, below(into, tree), symlinks=True, ignore=shutil.ignore_patterns(*left))


def below(into: Path, path: Path) -> Path:
    """Where `path` goes; links among its parents are followed."""
    return into / (path.parent.resolve() / path.name).relative_to("/")


def compile_imported(into: Path) -> None:
    """Bytecode of what is imported by now, and of all that is ours."""
    sources = {Path(each.__file__) for each in list(sys.modules.values()) if is_source(each)}
    for source in sources | set((ENVIRONMENT / "lib").rglob("site-packages/ironcart/**/*.py")):
        if (copied := below(into, source)).exists():
            cached = Path(importlib.util.cache_from_source(str(source)))
            # Unchecked: nothing in the image changes.
            py_compile.compile(
                str(copied),
                cfile=str(below(into, cached)),
                dfile=str(source),
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )


def is_source(module: object) -> bool:
    """Whether a module came from a file of Python."""
    return (getattr(module, "__file__", None) or "").endswith(".py")


def linked(binaries: set[Path]) -> set[Path]:
    """Every library that these are linked with, the loader included."""
    said = subprocess.run(  # noqa: S603 - the base's own tool, on files of the build
        ["/usr/bin/ldd", *map(str, sorted(binaries))],
        capture_output=True,
        text=True,
        check=False,  # It ends with 1 where something is linked with nothing.
    ).stdout
    words = (word for line in said.splitlines() if "(0x" in line for word in line.split())
    return {Path(word) for word in words if word.startswith("/") and str(ENVIRONMENT) not in word}


def copy_with_links(into: Path, path: Path) -> None:
    """A file, and every link on the way to it."""
    if (there := below(into, path)).exists() or there.is_symlink():
        pass
    else:
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, there, follow_symlinks=False)
    if path.is_symlink():
        copy_with_links(into, path.parent / path.readlink())


def tell_scanners(into: Path, files: set[Path]) -> None:
    """Which of Debian's packages are here, where scanners look, and what they ask of us."""
    wanted = {plain(each) for path in files for each in (path, path.resolve())}
    owners = {
        listed.stem.partition(":")[0]
        for listed in INFO.glob("*.list")
        if wanted & {plain(Path(line)) for line in listed.read_text().splitlines()}
    }
    (into / "var/lib/dpkg/status.d").mkdir(parents=True)
    for stanza in Path("/var/lib/dpkg/status").read_text().split("\n\n"):
        name = stanza.partition("\n")[0].removeprefix("Package: ")
        if name in owners:
            (into / "var/lib/dpkg/status.d" / name).write_text(stanza + "\n")
            if (asked := Path("/usr/share/doc", name, "copyright")).exists():
                copy_with_links(into, asked)


def plain(path: Path) -> str:
    """A path as packages list it, whether or not they know that /lib has moved into /usr."""
    return str(path).removeprefix("/usr")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
