"""The bill of materials of the image: `python -m checks.sbom OUT`, with cyclonedx-bom beside it.

Installs what the Dockerfile installs into an environment of its own, has cyclonedx-py describe and
validate it, then checks that nothing is missing and that every licence is known and fits ours.
"""

import json
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from checks.image import Locked, of_the_image

ROOT = Path(__file__).parent.parent
SPECIFICATION = "1.6"
# Only on other systems than the image's.
ELSEWHERE = ("colorama", "tzdata")
# What may travel with software under Apache-2.0, as licences are named by SPDX or by classifiers.
LICENCES = re.compile(
    r"\b(Apache|MIT|MIT-0|BSD|0BSD|ISC|PSF|Python Software Foundation|Python-2\.0|MPL|Mozilla"
    r"|Unlicense|Zlib|CC0)\b",
    re.IGNORECASE,
)
# Read by a person in the package's own licence file, where its metadata name none.
READ = {"protobuf": "BSD-3-Clause", "rich-click": "MIT"}
UNWANTED = re.compile(r"\b(?:A|L)?GPL\b|GNU|SSPL|BUSL|proprietary", re.IGNORECASE)


def licences(component: Mapping[str, Any]) -> str:
    """The licences of one component, in words; empty when it names none."""
    named = [
        choice.get("expression") or choice["license"].get("id") or choice["license"].get("name", "")
        for choice in component.get("licenses", ())
    ]
    return " AND ".join(dict.fromkeys(each.partition("\n")[0] for each in named if each))


def complete(bill: Mapping[str, Any]) -> None:
    """Add the licences that a person has read to the components that name none."""
    for component in bill["components"]:
        if not licences(component) and (read := READ.get(component["name"])):
            component["licenses"] = [{"license": {"id": read, "acknowledgement": "concluded"}}]


def faults(bill: Mapping[str, Any], wanted: Sequence[Locked]) -> Iterator[str]:
    """Say what a bill lacks of what is installed, and which licences need a person."""
    listed = {
        re.sub(r"[-_.]+", "-", each["name"]).lower(): each for each in bill.get("components", ())
    }
    for each in wanted:
        component = listed.pop(each.name, None)
        if component is None:
            yield f"{each.name}: is in the image and not in the bill"
            continue
        if component["version"] != each.version:
            yield f"{each.name}: is {each.version}, listed as {component['version']}"
        said = licences(component)
        if not LICENCES.search(said) or UNWANTED.search(said):
            yield f"{each.name}: licence {said or 'unknown'}: look, then extend checks/sbom.py"
    for name in sorted(listed):
        yield f"{name}: is in the bill and not in the image"


def install(folder: Path, wanted: Sequence[Locked]) -> Path:
    """Make an environment of exactly these packages; returns its Python."""
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder)
    lock = folder / "image.lock"
    lock.write_text("".join(map(str, wanted)))
    python = folder / "bin" / "python"
    words = ["--quiet", "--disable-pip-version-check", "--no-compile", "--no-deps"]
    words += ["--only-binary=:all:"]
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--require-hashes",
    ]
    subprocess.run([*pip, *words, "--requirement", lock], check=True)  # noqa: S603 - our own words
    return python


def write(python: Path, out: Path) -> dict[str, Any]:
    """Have the bill written and validated against the specification; returns it."""
    words = ["--sv", SPECIFICATION, "--output-reproducible", "--validate", "--of", "JSON"]
    about: list[str | Path] = ["--mc-type", "application", "--pyproject", ROOT / "pyproject.toml"]
    maker: list[str | Path] = [sys.executable, "-m", "cyclonedx_py", "environment", *words, *about]
    subprocess.run([*maker, "-o", out, python], check=True)  # noqa: S603 - our own words
    bill: dict[str, Any] = json.loads(out.read_text())
    return bill


def main(out: Path) -> int:
    """Write the bill to `out`; returns 1 when something is missing from it, or unwanted."""
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    everywhere = of_the_image((ROOT / "requirements.lock").read_text(), dockerfile)
    wanted = [each for each in everywhere if each.name not in ELSEWHERE]
    out.parent.mkdir(parents=True, exist_ok=True)
    bill = write(install(out.parent / "sbom-environment", wanted), out)
    complete(bill)
    out.write_text(json.dumps(bill, indent=2) + "\n")
    found = list(faults(bill, wanted))
    for component in sorted(bill["components"], key=lambda each: str(each["name"])):
        print(f"{component['name']}=={component['version']}  {licences(component)}")
    for fault in found:
        print(f"sbom: {fault}", file=sys.stderr)
    print(f"{out}: {len(bill['components'])} packages, by cyclonedx-bom {version('cyclonedx-bom')}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
