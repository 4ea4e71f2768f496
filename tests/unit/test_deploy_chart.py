"""The chart as Helm renders it, for a laptop and for production: each guard is where it should be.

Needs `helm`, on the path or named by HELM, and nothing else: no cluster is asked.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped] # its stubs are not locked

from ironcart.cli import services
from ironcart.toolkit.loop.consumer import MESSAGES_IN_HAND_MAX
from ironcart.toolkit.topology import ACK_PENDING_MAX

CHART = Path(__file__).parent.parent.parent / "deploy" / "helm" / "ironcart"
HELM = os.environ.get("HELM") or shutil.which("helm")
# The oldest and a newer Kubernetes: the chart must not depend on which one `helm` was built for.
KUBERNETES = ("1.30.0", "1.37.0")
NO_HELM = "there is no helm on the path, and HELM names none: .ci/deploy fetches one"
RELEASE, NAMESPACE = "shop", "ironcart"
HELM_TIMEOUT_S = 60
HOOK, WEIGHT, DELETE = (f"helm.sh/{each}" for each in ("hook", "hook-weight", "hook-delete-policy"))
COMPONENT = "app.kubernetes.io/component"

pytestmark = pytest.mark.skipif(HELM is None, reason=NO_HELM)

Manifest = Mapping[str, Any]


def helm(
    *options: str, values: str = "production", kubernetes: str = KUBERNETES[0]
) -> subprocess.CompletedProcess[str]:
    assert HELM
    return subprocess.run(
        [
            *(HELM, "template", RELEASE, str(CHART), "--namespace", NAMESPACE),
            *("--kube-version", kubernetes, "--values", str(CHART / f"values-{values}.yaml")),
            *options,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=HELM_TIMEOUT_S,
    )


@cache
def rendered(values: str, *options: str) -> Sequence[Manifest]:
    done = helm(*options, values=values)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def of_kind(kind: str, manifests: Sequence[Manifest]) -> dict[str, Manifest]:
    """Everything of one kind, by its component; a name comes once."""
    found = [each for each in manifests if each["kind"] == kind]
    by_name = {each["metadata"]["labels"][COMPONENT]: each for each in found}
    assert len(by_name) == len(found)
    return by_name


def pods(manifests: Sequence[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """The spec of every pod that is ever made: services, hooks and tests."""
    for each in manifests:
        if each["kind"] in ("Deployment", "Job"):
            yield each["metadata"]["name"], each["spec"]["template"]["spec"]
        elif each["kind"] == "Pod":
            yield each["metadata"]["name"], each["spec"]


def container_of(deployment: Manifest) -> Manifest:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def variables(container: Manifest) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container["env"]}


def secrets_of(container: Manifest) -> list[Mapping[str, Any]]:
    return [e["valueFrom"]["secretKeyRef"] for e in container.get("env", ()) if "value" not in e]


@pytest.fixture(params=["dev", "production"])
def manifests(request: pytest.FixtureRequest) -> Sequence[Manifest]:
    return rendered(request.param)


@pytest.fixture
def production() -> Sequence[Manifest]:
    return rendered("production")


@pytest.mark.parametrize("kind", ["Deployment", "Service", "PodDisruptionBudget", "ServiceAccount"])
def test_every_service_has_one_of(kind: str, manifests: Sequence[Manifest]) -> None:
    assert set(of_kind(kind, manifests)) - {"provision"} == set(services.NAMES)


def test_any_kubernetes_from_the_oldest_on_gets_the_same() -> None:
    first, last = (helm(kubernetes=each) for each in KUBERNETES)

    assert first.returncode == 0, first.stderr
    assert first.stdout == last.stdout
    assert helm(kubernetes="1.29.0").returncode != 0


def test_every_manifest_is_named_for_its_release_and_labelled(
    manifests: Sequence[Manifest],
) -> None:
    for each in manifests:
        assert each["metadata"]["name"].startswith(RELEASE)
        assert each["metadata"]["labels"]["app.kubernetes.io/instance"] == RELEASE
        assert "namespace" not in each["metadata"]


def test_a_deployment_runs_its_service_and_selects_no_other(manifests: Sequence[Manifest]) -> None:
    for name, each in of_kind("Deployment", manifests).items():
        labels = each["spec"]["template"]["metadata"]["labels"]

        assert container_of(each)["args"] == ["run", name]
        assert each["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert each["spec"]["selector"]["matchLabels"][COMPONENT] == name


def test_every_pod_meets_the_restricted_standard(manifests: Sequence[Manifest]) -> None:
    for name, pod in pods(manifests):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] == security["runAsGroup"] == 10001
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert {next(iter(v.keys() - {"name"})) for v in pod["volumes"]} <= {
            *("configMap", "emptyDir", "persistentVolumeClaim", "secret")
        }
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]


def test_every_container_asks_for_what_it_needs_and_has_a_limit_of_memory(
    manifests: Sequence[Manifest],
) -> None:
    for _, pod in pods(manifests):
        for container in pod["containers"]:
            resources = container["resources"]
            assert set(resources["requests"]) == {"cpu", "memory"}
            assert set(resources["limits"]) == {"memory"}


@pytest.mark.parametrize(("values", "scheme"), [("dev", "HTTP"), ("production", "HTTPS")])
def test_probes_ask_health_whether_to_restart_and_ready_whether_to_call(
    values: str, scheme: str
) -> None:
    for each in of_kind("Deployment", rendered(values)).values():
        container = container_of(each)
        alive, ready = container["livenessProbe"], container["readinessProbe"]
        health = {"path": "/health", "port": "http", "scheme": scheme}

        assert container["ports"] == [{"name": "http", "containerPort": 8080}]
        assert container["startupProbe"]["httpGet"] == health
        assert alive["httpGet"] == health
        assert alive["initialDelaySeconds"] == 10
        assert ready["httpGet"] == {"path": "/ready", "port": "http", "scheme": scheme}
        assert ready["initialDelaySeconds"] == 5


def test_a_pod_is_given_longer_than_its_pause_and_its_drain(manifests: Sequence[Manifest]) -> None:
    for each in of_kind("Deployment", manifests).values():
        container = container_of(each)
        pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain = int(variables(container)["IRONCART_DRAIN_TIMEOUT_S"])
        grace = each["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]

        assert pause > 0
        assert grace > pause + drain


def test_a_rollout_never_has_fewer_replicas_and_spreads_them(
    manifests: Sequence[Manifest],
) -> None:
    for each in of_kind("Deployment", manifests).values():
        spread = each["spec"]["template"]["spec"]["topologySpreadConstraints"]

        assert each["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        assert {one["topologyKey"].rpartition("/")[2] for one in spread} == {"zone", "hostname"}
    for each in of_kind("PodDisruptionBudget", manifests).values():
        assert each["spec"]["maxUnavailable"] == 1


def test_secrets_come_from_existing_ones_and_each_service_has_its_own(
    manifests: Sequence[Manifest],
) -> None:
    owners: dict[str, str] = {}
    for name, pod in pods(manifests):
        for container in pod["containers"]:
            used = secrets_of(container)
            assert all(each["key"].startswith("IRONCART_") for each in used)
            owners |= dict.fromkeys((each["name"] for each in used), name)
    assert not [each for each in manifests if each["kind"] == "Secret"]
    assert len(owners) == len(services.NAMES) + 1


def test_a_scaler_watches_every_durable_consumer(production: Sequence[Manifest]) -> None:
    scalers = of_kind("ScaledObject", production)

    for name, service in services.every().items():
        triggers = scalers[name]["spec"]["triggers"]
        lags = [each["metadata"] for each in triggers if each["type"] == "nats-jetstream"]
        assert scalers[name]["spec"]["scaleTargetRef"]["name"] == f"{RELEASE}-{name}"
        assert {(each["stream"], each["consumer"]) for each in lags} == {
            (each.stream, each.name) for each in service.durables
        }
        for each in lags:
            assert all(isinstance(value, str) for value in each.values())
            assert each["natsServerMonitoringEndpoint"].startswith("nats-headless.")
            assert int(each["lagThreshold"]) > MESSAGES_IN_HAND_MAX


def test_one_scaler_looks_after_a_deployment_and_orders_scales_with_its_callers_too(
    production: Sequence[Manifest],
) -> None:
    scalers = of_kind("ScaledObject", production)
    on_cpu = {name for name, each in scalers.items() if "cpu" in str(each["spec"]["triggers"])}

    assert on_cpu == {"orders"}
    assert not of_kind("HorizontalPodAutoscaler", production)
    for each in of_kind("Deployment", production).values():
        assert "replicas" not in each["spec"]


def test_replicas_never_starve_each_other_at_max_ack_pending(
    production: Sequence[Manifest],
) -> None:
    most = ACK_PENDING_MAX // MESSAGES_IN_HAND_MAX
    setting = "services.audit.autoscaling.max="

    for each in of_kind("ScaledObject", production).values():
        spec = each["spec"]
        assert 1 <= spec["minReplicaCount"] <= spec["maxReplicaCount"] <= most
    assert helm("--set", f"{setting}{most}").returncode == 0
    refused = helm("--set", f"{setting}{most + 1}")
    assert refused.returncode != 0
    assert f"must be at most {most}" in refused.stderr


def test_without_keda_every_service_scales_on_cpu_and_nothing_asks_for_it() -> None:
    plain = rendered("production", "--set", "autoscaling.kind=hpa")
    deployments = of_kind("Deployment", plain)
    scalers = of_kind("HorizontalPodAutoscaler", plain)

    assert set(scalers) == set(services.NAMES)
    assert not [each for each in plain if "keda" in each["apiVersion"]]
    for name, each in scalers.items():
        spec = each["spec"]
        assert spec["scaleTargetRef"] == {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "name": deployments[name]["metadata"]["name"],
        }
        assert 1 <= spec["minReplicas"] <= spec["maxReplicas"]
        assert set(spec["behavior"]) == {"scaleUp", "scaleDown"}
        (metric,) = spec["metrics"]
        assert metric["resource"]["name"] == "cpu"
        # A share of what is asked for: without a request there would be nothing to take it of.
        assert container_of(deployments[name])["resources"]["requests"]["cpu"]
        assert "replicas" not in deployments[name]["spec"]


def test_provisioning_comes_first_with_secrets_and_a_policy_of_its_own(
    manifests: Sequence[Manifest],
) -> None:
    (job,) = of_kind("Job", manifests).values()
    notes = job["metadata"]["annotations"]
    needs = [of_kind(kind, manifests)["provision"] for kind in ("ServiceAccount", "NetworkPolicy")]
    container = container_of(job)

    assert notes[HOOK] == "pre-install,pre-upgrade"
    assert notes[DELETE] == "before-hook-creation,hook-succeeded"
    assert job["spec"]["backoffLimit"] > 0
    assert job["spec"]["activeDeadlineSeconds"] > 0
    assert container["args"] == ["provision"]
    assert job["spec"]["template"]["spec"]["serviceAccountName"] == "shop-provision"
    assert {each["name"] for each in secrets_of(container)} == {"ironcart-provision"}
    for each in needs:
        assert each["metadata"]["annotations"][HOOK] == notes[HOOK]
        assert int(each["metadata"]["annotations"][WEIGHT]) < int(notes[WEIGHT])
        # Deleted on success, they would be gone before the Job runs.
        assert each["metadata"]["annotations"][DELETE] == "before-hook-creation"
    assert "ipBlock" not in str(needs[1])


def test_streams_have_three_copies_in_production_and_one_on_a_laptop() -> None:
    copies = {
        values: variables(container_of(of_kind("Job", rendered(values))["provision"]))
        for values in ("dev", "production")
    }

    assert copies["production"]["IRONCART_STREAM_REPLICAS"] == "3"
    assert copies["dev"]["IRONCART_STREAM_REPLICAS"] == "1"
    assert copies["production"]["IRONCART_STREAM_BYTES_MAX"] == str(4 * 1024**3)


@pytest.mark.parametrize(("values", "scheme"), [("dev", "http"), ("production", "https")])
def test_a_helm_test_asks_every_service_whether_it_is_ready(values: str, scheme: str) -> None:
    (pod,) = of_kind("Pod", rendered(values)).values()
    args = pod["spec"]["containers"][0]["args"]

    assert pod["metadata"]["annotations"][HOOK] == "test"
    assert set(args[1:]) == {f"{scheme}://shop-{name}:8080/ready" for name in services.NAMES}
    compile(args[0], "ready.py", "exec")


def test_metrics_are_scraped_and_dashboards_and_alerts_come_along(
    production: Sequence[Manifest],
) -> None:
    (rules,) = of_kind("PrometheusRule", production).values()
    (boards,) = of_kind("ConfigMap", production).values()
    monitors = of_kind("ServiceMonitor", production)
    alerts = [rule for group in rules["spec"]["groups"] for rule in group["rules"]]

    for name, each in of_kind("Service", production).items():
        (endpoint,) = monitors[name]["spec"]["endpoints"]
        selected = monitors[name]["spec"]["selector"]["matchLabels"]
        assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")
        assert selected[COMPONENT] == name
        assert selected.items() <= each["metadata"]["labels"].items()
    assert set(boards["data"]) == {"ironcart.json"}
    assert all(f'namespace="{NAMESPACE}"' in rule["expr"] for rule in alerts)
    assert all({"severity"} <= set(rule["labels"]) for rule in alerts)


def test_an_http_route_and_external_secrets_come_when_they_are_asked_for() -> None:
    asked = rendered(
        "production",
        *("--set", "httpRoute.enabled=true", "--set", "externalSecrets.enabled=true"),
        *("--set", "externalSecrets.store.name=vault"),
    )
    secrets = of_kind("ExternalSecret", asked)

    assert of_kind("HTTPRoute", asked)
    assert set(secrets) == {
        *(*services.NAMES, "provision", "api-keys", "audit-signing-key", "checkpoints-headers")
    }
    assert secrets["provision"]["metadata"]["annotations"][HOOK] == "pre-install,pre-upgrade"
    assert not {"HTTPRoute", "ExternalSecret"} & {e["kind"] for e in rendered("production")}


@pytest.mark.parametrize(
    "wrong",
    [
        "replicaCount=3",
        "config.IRONCART_MASTER_KEY=in-the-open",
        "image.digest=latest",
        "nats.streamReplicas=2",
        "autoscaling.lagThreshold=100",
        "services.loyalty.secretName=x",
    ],
)
def test_values_that_cannot_be_meant_are_refused(wrong: str) -> None:
    assert helm("--set", wrong).returncode != 0
