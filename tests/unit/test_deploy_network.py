"""Who may call whom: the chart's network policies, rendered for a laptop and for production."""

from collections.abc import Iterator, Sequence

import pytest
from test_deploy_chart import COMPONENT, HELM, NO_HELM, RELEASE, Manifest, of_kind, rendered

from ironcart.cli import services

# What must not be reached as if it were public, within each range that stands for anybody.
PRIVATE = {
    "0.0.0.0/0": {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"},
    "::/0": {"fc00::/7", "fe80::/10"},
}

pytestmark = pytest.mark.skipif(HELM is None, reason=NO_HELM)


@pytest.fixture(params=["dev", "production"])
def manifests(request: pytest.FixtureRequest) -> Sequence[Manifest]:
    return rendered(request.param)


def peers(rules: Sequence[Manifest], side: str) -> Iterator[Manifest]:
    for rule in rules:
        yield from rule[side]


def outside_ports(policy: Manifest) -> set[int]:
    """Ports on which any public address may be called."""
    return {
        port["port"]
        for rule in policy["spec"]["egress"]
        for port in rule["ports"]
        if any(peer.get("ipBlock", {}).get("cidr") in PRIVATE for peer in rule["to"])
    }


def test_nothing_comes_in_or_goes_out_unless_it_is_said(manifests: Sequence[Manifest]) -> None:
    closed = of_kind("NetworkPolicy", manifests)["network"]

    assert set(closed["spec"]) == {"podSelector", "policyTypes"}
    assert closed["spec"]["policyTypes"] == ["Ingress", "Egress"]
    for each in manifests:
        if each["kind"] in ("Deployment", "Job", "Pod"):
            labels = each["spec"].get("template", each)["metadata"]["labels"]
            assert closed["spec"]["podSelector"]["matchLabels"].items() <= labels.items()


# In production audit takes its checkpoints to an object store.
@pytest.mark.parametrize(("values", "audit"), [("dev", set()), ("production", {443})])
def test_a_service_reaches_only_what_it_needs(values: str, audit: set[int]) -> None:
    policies = of_kind("NetworkPolicy", rendered(values))

    for name in services.NAMES:
        inside = {
            port["port"]
            for rule in policies[name]["spec"]["egress"]
            if all("ipBlock" not in peer for peer in rule["to"])
            for port in rule["ports"]
        }
        assert {53, 4222, 8222, 5432} <= inside <= {53, 4222, 8222, 5432, 4318}
    assert {name: outside_ports(policies[name]) for name in services.NAMES} == {
        "orders": set(),
        "inventory": set(),
        "payments": {443},
        "notifications": {443, 465},
        "audit": audit,
    }


def test_no_address_within_the_house_counts_as_public(manifests: Sequence[Manifest]) -> None:
    blocks = [
        peer["ipBlock"]
        for each in of_kind("NetworkPolicy", manifests).values()
        for peer in peers(each["spec"].get("egress", ()), "to")
        if "ipBlock" in peer
    ]

    assert blocks
    for block in blocks:
        private = {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"}
        assert (private if "." in block["cidr"] else {"fc00::/7", "fe80::/10"}) <= {
            *block["except"]
        }


def test_services_cannot_reach_each_other(manifests: Sequence[Manifest]) -> None:
    policies = of_kind("NetworkPolicy", manifests)

    for name in services.NAMES:
        spec = policies[name]["spec"]
        for peer in peers(spec["egress"], "to"):
            assert "namespaceSelector" in peer or "ipBlock" in peer
        for peer in peers(spec["ingress"], "from"):
            own = peer.get("podSelector", {}).get("matchLabels", {}).get(COMPONENT)
            assert "namespaceSelector" in peer or own == "test"


def test_only_what_has_a_route_is_open_to_the_ingress_controller() -> None:
    production = rendered("production")
    policies = of_kind("NetworkPolicy", production)
    (ingress,) = of_kind("Ingress", production).values()
    routed = {
        path["backend"]["service"]["name"].removeprefix(f"{RELEASE}-")
        for rule in ingress["spec"]["rules"]
        for path in rule["http"]["paths"]
    }
    callers = {name: str(policies[name]["spec"]["ingress"]) for name in services.NAMES}

    assert routed == {"orders", "payments"}
    assert {name for name in callers if "ingress-nginx" in callers[name]} == routed
    assert all("prometheus" in each for each in callers.values())
    assert ingress["spec"]["tls"]


def test_an_issuer_of_tokens_is_reached_by_every_service_and_not_by_provisioning() -> None:
    asked = rendered(
        "dev",
        *("--set", "auth.oidc.issuer=https://login.example.com"),
        *("--set", "auth.oidc.audience=ironcart"),
    )
    policies = of_kind("NetworkPolicy", asked)

    assert all(443 in outside_ports(policies[name]) for name in services.NAMES)
    assert outside_ports(policies["provision"]) == set()
