"""`ironcart doctor` at a cluster: each node is judged alone; one that is down hides no other."""

import json
import subprocess
import sys
from pathlib import Path

from shopping import System

# Nobody listens there.
NODE_DOWN = "http://127.0.0.1:1"
DOCTOR_TIMEOUT_S = 120


def test_doctor_asks_every_node_and_only_warns_of_one_that_does_not_answer(
    system: System, tmp_path: Path
) -> None:
    run = system.run
    run["nats"]["monitor_urls"].insert(0, NODE_DOWN)
    (tmp_path / "run.json").write_text(json.dumps(run))

    done = subprocess.run(
        [sys.executable, "-m", "ironcart.cli", "doctor", "--data", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=DOCTOR_TIMEOUT_S,
    )
    first, second = done.stdout.splitlines()[:2]

    assert done.returncode == 0, done.stdout + done.stderr
    assert first.startswith(f" warning  cannot ask {NODE_DOWN}/varz")
    assert second.startswith("      ok  broker ")
    assert "syncs" in second
