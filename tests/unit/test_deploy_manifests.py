"""The plain manifests: they are what the chart gives, and need nothing but Kubernetes."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped] # its stubs are not locked
from test_deploy_chart import COMPONENT, HELM, NO_HELM, of_kind

from ironcart.cli import services

FOLDER = Path(__file__).parent.parent.parent / "deploy" / "manifests"
FILES = ("provision.yaml", "services.yaml")
# Groups that every cluster has.
BUILT_IN = {"v1", "apps/v1", "autoscaling/v2", "batch/v1", "networking.k8s.io/v1", "policy/v1"}
RENDER_TIMEOUT_S = 60


def parsed(path: Path) -> list[Any]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


@pytest.mark.skipif(HELM is None, reason=NO_HELM)
def test_they_are_what_the_chart_gives(tmp_path: Path) -> None:
    subprocess.run(
        [FOLDER / "render", tmp_path],
        env={"HELM": str(HELM), "PATH": "/usr/local/bin:/usr/bin:/bin"},
        check=True,
        timeout=RENDER_TIMEOUT_S,
    )

    for name in FILES:
        assert parsed(FOLDER / name) == parsed(tmp_path / name), f"run {FOLDER / 'render'}"


def test_they_need_nothing_but_kubernetes() -> None:
    for name in FILES:
        assert {each["apiVersion"] for each in parsed(FOLDER / name)} <= BUILT_IN


def test_provisioning_is_apart_and_every_service_is_there() -> None:
    first, then = (parsed(FOLDER / name) for name in FILES)

    assert {each["kind"] for each in first} == {"Job", "NetworkPolicy", "ServiceAccount"}
    assert "Job" not in {each["kind"] for each in then}
    assert set(of_kind("Deployment", then)) == set(services.NAMES)
    assert all(each["metadata"]["labels"][COMPONENT] != "provision" for each in then)
