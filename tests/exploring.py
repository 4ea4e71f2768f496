"""Send a service what its own OpenAPI document gives rise to, and judge what it answers."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import shopping
from shopping import System

EXAMPLES_MAX = 30
REQUEST_TIMEOUT_S = 20.0
# Ten times what the longest takes on a quiet machine.
ENDS_WITHIN_S = 240.0
# All but these: positive_data_acceptance, which what_a_schema_can_judge_is_accepted runs where it
# applies; ignored_auth, which is for the system that asks for keys; and object_level_authorization,
# which tests/e2e/test_access.py shows route by route.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "ensure_resource_availability",
    "use_after_free",
    "every_error_is_a_problem",
    "what_a_schema_can_judge_is_accepted",
)


def explore(system: System, service: str, tmp_path: Path, **changes: Any) -> None:
    """Send what the service's document gives rise to, and hold the answers against it."""
    settings = tmp_path / "schemathesis.toml"
    settings.write_text('hooks = "http_checks"\n')
    options = {
        "--checks": ",".join(CHECKS),
        "--max-examples": EXAMPLES_MAX,
        "--request-timeout": REQUEST_TIMEOUT_S,
        "--generation-database": "none",
        "--suppress-health-check": "all",  # a slow machine is no fault of the service
        "--warnings": "off",
        "--seed": 1,
        **changes,
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(settings), "run"),
            f"{system.url(service)}/openapi.json",
            *(f"{name}={value}" for name, value in options.items()),
            *("--no-color", "--continue-on-failure"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(shopping.__file__).parent)},
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
