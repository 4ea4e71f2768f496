"""What the image is made of: the part of requirements.lock that deploy/Dockerfile installs."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

# A requirement of a lock, with all its hashes; what stands behind the version is a marker.
_REQUIREMENT = re.compile(
    r"^(?P<name>[a-z0-9][a-z0-9._-]*)(?:\[[a-z0-9,-]+\])?==(?P<version>[^ ;\\]+)"
    r"(?: ; (?P<marker>[^\\\n]+?))?"
    r"(?P<hashes>(?: \\\n    --hash=sha256:[0-9a-f]{64})*)$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Locked:
    """One requirement of a lock file; `marker` is empty where it holds everywhere."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]

    def __str__(self) -> str:
        marker = f" ; {self.marker}" if self.marker else ""
        hashes = "".join(f" \\\n    --hash=sha256:{each}" for each in self.hashes)
        return f"{self.name}=={self.version}{marker}{hashes}\n"


def locked(lock: str) -> Iterator[Locked]:
    """Read a lock file; raises `ValueError` at a line that is no part of a requirement."""
    left = lock
    for found in _REQUIREMENT.finditer(lock):
        left = left.replace(found[0] + "\n", "", 1)
        hashes = re.findall(r"sha256:([0-9a-f]{64})", found["hashes"])
        yield Locked(found["name"], found["version"], found["marker"] or "", tuple(hashes))
    if left.strip():
        raise ValueError(f"not a requirement: {left.strip().splitlines()[0]}")


def left_out(dockerfile: str) -> set[str]:
    """The packages of the lock that the Dockerfile keeps out of the image."""
    names: set[str] = set()
    for argument in ("EMBEDDED", "BUILDERS", "UNUSED"):
        found = re.search(rf'^ARG {argument}="([^"]*)"$', dockerfile, re.MULTILINE)
        if found is None:
            raise ValueError(f"deploy/Dockerfile has no ARG {argument}: see checks/image.py")
        names |= set(found[1].split())
    return names


def of_the_image(lock: str, dockerfile: str) -> list[Locked]:
    """The requirements that the Dockerfile installs into the image."""
    others = left_out(dockerfile)
    return [each for each in locked(lock) if each.name not in others]
