"""Keys, certificates and signatures: what each pod is given of them, and that no other is.

Needs `helm`, as test_deploy_chart.py does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from test_deploy_chart import (
    HELM,
    NO_HELM,
    Manifest,
    container_of,
    helm,
    of_kind,
    pods,
    rendered,
    variables,
)

from ironcart.cli import services

KEYS, TLS = "/etc/ironcart/api-keys", "/etc/ironcart/tls"
# r--r-----: the group is the pod's, by fsGroup.
SECRET_MODE = 0o440
OIDC = (
    *("--set", "auth.oidc.issuer=https://login.example.com"),
    *("--set", "auth.oidc.audience=ironcart"),
)

pytestmark = pytest.mark.skipif(HELM is None, reason=NO_HELM)


def pod_of(name: str, manifests: Sequence[Manifest]) -> Manifest:
    return dict(pods(manifests))[f"shop-{name}"]


def mounted(pod: Manifest) -> dict[str, Mapping[str, Any]]:
    """What a pod's one container has mounted: the volume's source, by path."""
    (container,) = pod["containers"]
    sources = {each["name"]: each for each in pod["volumes"]}
    assert {each["name"] for each in container["volumeMounts"]} == set(sources)
    return {each["mountPath"]: sources[each["name"]] for each in container["volumeMounts"]}


def test_every_service_has_the_file_of_keys_and_no_other_pod_has() -> None:
    production = rendered("production")
    for name, pod in pods(production):
        with_keys = name.removeprefix("shop-") in services.NAMES
        assert (KEYS in mounted(pod)) is with_keys, name
    for name, each in of_kind("Deployment", production).items():
        volume = mounted(pod_of(name, production))[KEYS]
        assert volume["secret"] == {"secretName": "ironcart-api-keys", "defaultMode": SECRET_MODE}
        said = variables(container_of(each))
        assert said["IRONCART_API_KEYS_FILE"] == f"{KEYS}/keys.json"
        assert "IRONCART_AUTH" not in said


def test_a_file_of_keys_is_mounted_whole_so_that_a_change_arrives() -> None:
    for _, pod in pods(rendered("production")):
        for container in pod["containers"]:
            assert all("subPath" not in each for each in container["volumeMounts"])


def test_an_issuer_of_tokens_is_told_to_every_service_and_may_stand_alone() -> None:
    asked = rendered("dev", *OIDC, "--set", "auth.apiKeys.secretName=")

    for each in of_kind("Deployment", asked).values():
        said = variables(container_of(each))
        assert said["IRONCART_OIDC_ISSUER"] == "https://login.example.com"
        assert said["IRONCART_OIDC_AUDIENCE"] == "ironcart"
        assert "IRONCART_OIDC_JWKS_URL" not in said
        assert "IRONCART_API_KEYS_FILE" not in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("auth.apiKeys.secretName=",), "auth.apiKeys.secretName"),
        (("auth.oidc.issuer=https://login.example.com",), "auth.oidc.audience"),
        (("auth.oidc.issuer=http://login.example.com",), "/auth/oidc/issuer"),
        (("config.IRONCART_AUTH=off",), "IRONCART_AUTH"),
        (("audit.checkpoints.claimName=disk",), "not both"),
    ],
)
def test_an_installation_that_would_not_start_is_refused(options: Sequence[str], said: str) -> None:
    refused = helm(*(word for each in options for word in ("--set", each)))

    assert refused.returncode != 0
    told = refused.stderr.replace("auth.oidc.issuer:", "/auth/oidc/issuer")
    assert said in told.replace("audit.checkpoints.url:", "/audit/checkpoints/url")


def test_every_service_and_provisioning_has_a_certificate_of_its_own() -> None:
    production = rendered("production")
    certificates = of_kind("Certificate", production)

    assert set(certificates) == {*services.NAMES, "provision"}
    for name, each in certificates.items():
        volume = mounted(pod_of(name, production))[TLS]
        assert volume["secret"] == {
            "secretName": each["spec"]["secretName"],
            "defaultMode": SECRET_MODE,
        }
        assert each["spec"]["commonName"] == name
        assert f"shop-{name}.ironcart.svc" in each["spec"]["dnsNames"]
        assert {"server auth", "client auth"} <= set(each["spec"]["usages"])
    secrets = [each["spec"]["secretName"] for each in certificates.values()]
    assert len(set(secrets)) == len(secrets)


def test_with_tls_services_are_told_and_called_by_https() -> None:
    production = rendered("production")
    containers = {
        name: pod["containers"][0] for name, pod in pods(production) if name != "shop-test"
    }
    monitors = of_kind("ServiceMonitor", production)

    for container in containers.values():
        assert variables(container)["IRONCART_TLS_DIR"] == TLS
    for name, each in of_kind("Service", production).items():
        (endpoint,) = monitors[name]["spec"]["endpoints"]
        assert each["spec"]["ports"][0]["appProtocol"] == endpoint["scheme"] == "https"
        assert endpoint["tlsConfig"]["serverName"] == f"shop-{name}.ironcart.svc"
        assert endpoint["tlsConfig"]["ca"]["secret"]["key"] == "ca.crt"
        assert "insecureSkipVerify" not in endpoint["tlsConfig"]


def test_the_test_pod_trusts_the_issuer_and_holds_no_private_key() -> None:
    volume = mounted(pod_of("test", rendered("production")))[TLS]

    assert volume["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]


def test_without_tls_nothing_speaks_of_it() -> None:
    dev = rendered("dev")

    assert not of_kind("Certificate", dev)
    assert all(TLS not in mounted(pod) for _, pod in pods(dev))


def test_certificates_of_your_own_are_taken_as_they_are() -> None:
    asked = rendered("production", "--set", "tls.issuer.name=")

    assert not of_kind("Certificate", asked)
    assert mounted(pod_of("orders", asked))[TLS]["secret"]["secretName"] == "ironcart-tls-orders"


def test_audit_alone_holds_the_key_that_signs_and_says_where_checkpoints_go() -> None:
    production = rendered("production")
    for name, pod in pods(production):
        for path in ("/etc/ironcart/audit", "/etc/ironcart/checkpoints"):
            assert (path in mounted(pod)) is (name == "shop-audit")
        assert ("IRONCART_AUDIT_CHECKPOINTS" in str(pod["containers"])) is (name == "shop-audit")
    said = variables(container_of(of_kind("Deployment", production)["audit"]))

    assert said["IRONCART_AUDIT_SIGNING_KEY_FILE"] == "/etc/ironcart/audit/signing.key"
    assert said["IRONCART_AUDIT_CHECKPOINTS"].startswith("https://")


def test_checkpoints_may_go_to_a_volume_instead() -> None:
    asked = rendered(
        "production",
        *("--set", "audit.checkpoints.url=", "--set", "audit.checkpoints.claimName=checkpoints"),
    )
    container = container_of(of_kind("Deployment", asked)["audit"])
    path = variables(container)["IRONCART_AUDIT_CHECKPOINTS"]

    assert mounted(pod_of("audit", asked))[path]["persistentVolumeClaim"] == {
        "claimName": "checkpoints"
    }
    (mount,) = [each for each in container["volumeMounts"] if each["mountPath"] == path]
    assert mount["readOnly"] is False


def test_whatever_is_mounted_is_read_only_but_for_scratch_and_checkpoints() -> None:
    for _, pod in pods(rendered("production")):
        for container in pod["containers"]:
            for each in container["volumeMounts"]:
                assert each["mountPath"] == "/tmp" or each["readOnly"] is True
