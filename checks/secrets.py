"""No key is kept in the repository: `python -m checks.secrets`, with detect-secrets beside it.

Every file that git would keep is scanned. What only looks like a secret is named in
`not-secrets.txt`, with the reason; an entry that nothing needs any more is a fault as well.
"""

import base64
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from detect_secrets.core.scan import scan_file
from detect_secrets.settings import transient_settings

ROOT = Path(__file__).parent.parent
EXCUSED = Path(__file__).parent / "not-secrets.txt"
# Whoever owns the value can do something with it, wherever it is found.
REAL = (
    *("ArtifactoryDetector", "AWSKeyDetector", "AzureStorageKeyDetector"),
    *("CloudantDetector", "DiscordBotTokenDetector", "GitHubTokenDetector", "GitLabTokenDetector"),
    *("IbmCloudIamDetector", "JwtTokenDetector", "MailchimpDetector", "NpmDetector"),
    *("OpenAIDetector", "PrivateKeyDetector", "PypiTokenDetector", "SendGridDetector"),
    *("SlackDetector", "SquareOAuthDetector", "StripeDetector", "TelegramBotTokenDetector"),
    "TwilioKeyDetector",
)
# What looks random or is called a password. Tests, chaos and benchmarks make up hundreds of those.
LIKELY = (
    *("KeywordDetector", "BasicAuthDetector"),
    *("Base64HighEntropyString", "HexHighEntropyString"),
)
OWN = {"name": "IronkeyDetector", "path": f"file://{Path(__file__).with_name('own_keys.py')}"}
MADE_UP = ("tests/", "chaos/", "benchmarks/", "checks/semgrep/")
# What only refers to a secret: a variable, a template, an id, a row of letters.
FILTERS = (
    *("is_indirect_reference", "is_likely_id_string", "is_potential_uuid"),
    *("is_prefixed_with_dollar_sign", "is_sequential_string", "is_templated_secret"),
)
# Values that name a secret and are none, each whole.
NAMES = (
    r"^(ironcart|nats)(-[a-z]+)+$",  # Secrets in Kubernetes
    r"^IRONCART_[A-Z_]+$",  # settings
    r"^(?i:(your-?)?password|user)$",  # what stands for one in a URL
)

Place = tuple[str, str]


def kept() -> list[str]:
    """What git keeps, or would: every file that it does not ignore."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603 - words of ours
    return sorted(name for name in listed.stdout.split("\0") if (ROOT / name).is_file())


def found_in(names: Iterable[str]) -> dict[Place, str]:
    """What looks like a secret, by file and hash: the line, and what it looks like."""
    found: dict[Place, str] = {}
    # Locks hold hashes of packages and nothing else: tests/unit/test_supply_chain.py.
    scanned = [name for name in names if not name.endswith(".lock")]
    ours = [name for name in scanned if not name.startswith(MADE_UP)]
    made_up = [name for name in scanned if name.startswith(MADE_UP)]
    excluding = [
        {"path": "detect_secrets.filters.regex.should_exclude_secret", "pattern": NAMES},
        *({"path": f"detect_secrets.filters.heuristic.{each}"} for each in FILTERS),
    ]
    for several, plugins in ((ours, (*REAL, *LIKELY)), (made_up, REAL)):
        used = [{"name": each} for each in plugins] + [OWN]
        with transient_settings({"plugins_used": used, "filters_used": excluding}):
            for name in several:
                for secret in scan_file(str(ROOT / name)):
                    place = (name, secret.secret_hash[:16])
                    found[place] = f"{name}:{secret.line_number}: {secret.type}"
    return found


def excused(text: str) -> Iterator[Place]:
    """The places that are excused: lines of `file hash why`; raises `ValueError` without a why."""
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, digest, why = line.split(maxsplit=2)
            if not why:
                raise ValueError(f"say why: {line}")
            yield name, digest


def finds_what_is_planted() -> bool:
    """Say whether a key would be found; it is put together here so that it is in no file."""
    key = base64.b32encode(secrets.token_bytes(10)).decode()
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        own = f"ick_{secrets.token_hex(8)}_{secrets.token_urlsafe(32)}"
        file.write(f'aws = "AKIA{key}"\npassword = "{secrets.token_urlsafe(24)}"\n# {own}\n')
        file.flush()
        return len(found_in([file.name])) == len(("aws", "password", "own"))


def main() -> int:
    """Print every fault; returns 1 when there is one."""
    if not finds_what_is_planted():
        print("a key that was planted has not been found: see checks/secrets.py")
        return 1
    found, known = found_in(kept()), set(excused(EXCUSED.read_text()))
    for place in sorted(found.keys() - known):
        print(
            f"{found[place]}: a secret? If not: add `{place[0]} {place[1]} why` to {EXCUSED.name}"
        )
    for name, digest in sorted(known - found.keys()):
        print(f"{EXCUSED.name}: {name} {digest} is excused and no longer there: remove the line")
    return 1 if found.keys() ^ known else 0


if __name__ == "__main__":
    sys.exit(main())
