"""What an image and an installation are made of, read without Helm: facts, metrics, pins."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped] # its stubs are not locked
from msgspec.structs import fields
from packaging.requirements import Requirement

from ironcart.cli import services
from ironcart.cli.doctor import FILL_RATIO_WARN, LAG_MESSAGES_WARN, OUTBOX_AGE_S_WARN
from ironcart.cli.provision import STREAM_BYTES_MAX
from ironcart.events import STREAMS
from ironcart.toolkit import lifecycle
from ironcart.toolkit.loop.consumer import MESSAGES_IN_HAND_MAX
from ironcart.toolkit.topology import ACK_PENDING_MAX

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "ironcart"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
# As promised by the table of docs/metrics.md: a histogram gives three series.
HISTOGRAM_SERIES = ("_bucket", "_sum", "_count")
GIB = 1024**3
IMPORT_TIMEOUT_S = 60
SECRETS_OF_ALL = {"IRONCART_NATS_URL", "IRONCART_DATABASE_URL"}
# Of a service's own settings, what must not stand in a values file.
SECRET_FIELDS = re.compile(r"(_key|_keys_old|_secrets|_url)$")


def parsed(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


FACTS: Mapping[str, Any] = parsed(CHART / "files" / "facts.yaml")
DASHBOARDS = sorted((DEPLOY / "grafana").glob("*.json"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(*wanted: Requirement) -> set[str]:
    """The names of all that these need here, themselves included."""
    found: set[tuple[str, str]] = set()
    todo = [(normal(each.name), extra) for each in wanted for extra in (*each.extras, "")]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        try:
            needed = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:
            continue
        for each in needed:
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                todo += [(normal(each.name), inner) for inner in (*each.extras, "")]
    return {name for name, _ in found}


def argument(name: str) -> list[str]:
    """The default of a build argument, as words."""
    found = re.search(rf'^ARG {name}="?([^"\n]*)"?$', DOCKERFILE, re.MULTILINE)
    assert found, name
    return found[1].split()


def stages() -> list[str]:
    """The Dockerfile's stages, comments left out."""
    plain = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)
    return re.split(r"^FROM ", plain, flags=re.MULTILINE)[1:]


@cache
def documented_series() -> frozenset[str]:
    """Every series that docs/metrics.md promises."""
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE
    )
    names = set()
    for name, kind in rows:
        names |= {name + each for each in HISTOGRAM_SERIES} if kind == "histogram" else {name}
    return frozenset(names)


def series_of(expression: str) -> set[str]:
    """The metrics that an expression of ours names."""
    bare = re.sub(r'"[^"]*"|\b(?:by|without) \([^)]*\)', "", expression)
    return set(re.findall(r"\b(?:ironcart|payment|jetstream)_\w+", bare))


def values_files() -> Iterator[Path]:
    yield from sorted(CHART.glob("values*.yaml"))


def test_the_image_is_built_on_a_base_of_one_version_and_takes_its_digest() -> None:
    build, last = (stage.splitlines()[0] for stage in stages())
    (base,) = argument("PYTHON_IMAGE")

    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", base)
    assert argument("PYTHON_DIGEST") == []
    assert build == "${PYTHON_IMAGE}${PYTHON_DIGEST:+@${PYTHON_DIGEST}} AS build"
    assert last == "scratch"


def test_the_image_runs_as_nobody_special_and_is_asked_to_end_by_sigterm() -> None:
    last = stages()[-1]

    assert "\nUSER 10001:10001\n" in last
    assert "\nSTOPSIGNAL SIGTERM\n" in last
    assert last.rstrip().endswith('ENTRYPOINT ["ironcart"]')
    assert "HEALTHCHECK" not in DOCKERFILE.replace("# ", "")
    assert not re.findall(r"^RUN", last, re.MULTILINE)


def test_the_image_takes_only_what_is_locked_and_has_no_pip() -> None:
    build = stages()[0].replace("\\\n", "")
    installs = re.findall(r"pip.* install [^&]*", build)

    assert installs
    for line in installs:
        assert "--require-hashes" in line or "--no-deps --no-index" in line, line
    assert "venv --without-pip /opt/ironcart" in build


def test_the_image_has_neither_the_embedded_servers_nor_what_builds_a_wheel() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    locked = {line.split("==")[0] for line in lock.splitlines() if re.match(r"[a-z0-9]", line)}
    left_out = {*argument("EMBEDDED"), *argument("BUILDERS"), *argument("UNUSED")}
    kept = locked - left_out
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]["embedded"]
    asked = closure(*map(Requirement, project["dependencies"]))
    needed = asked - set(argument("UNUSED"))
    embedded = closure(*map(Requirement, extra))

    assert set(argument("EMBEDDED")) == embedded - asked
    assert set(argument("UNUSED")) <= asked
    assert needed <= kept
    # What is left over is for another system: the lock is for all of them.
    assert kept - needed <= {"colorama", "tzdata"}
    assert {"hatchling", "editables"} <= set(argument("BUILDERS"))


def test_what_the_image_leaves_out_as_unused_is_imported_by_nobody() -> None:
    unused = [each.replace("-", "_") for each in argument("UNUSED")]
    program = (
        "import sys\n"
        "from ironcart.cli import services\n"
        f"sys.modules.update(dict.fromkeys({unused}))\n"  # None: an import of it fails.
        "services.every()\n"
        "import litestar.openapi, opentelemetry.exporter.otlp.proto.http.trace_exporter\n"
        "import ironcart.cli.__main__\n"  # Its help, as it was asked for.
    )

    assert unused
    subprocess.run([sys.executable, "-c", program, "--help"], check=True, timeout=IMPORT_TIMEOUT_S)


def test_the_context_of_a_build_is_what_the_image_is_made_of() -> None:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)

    assert "*" in lines
    assert {name for each in copied for name in each.split()} == {
        line[1:] for line in lines if line.startswith("!")
    }


def test_every_file_of_the_chart_parses() -> None:
    for path in (*values_files(), CHART / "Chart.yaml", DEPLOY / "nats" / "values.yaml"):
        assert isinstance(parsed(path), dict), path
    for path in (*DASHBOARDS, CHART / "values.schema.json"):
        json.loads(path.read_text())
    assert DASHBOARDS


def test_the_schema_of_values_is_one_and_holds_for_values() -> None:
    jsonschema_rs = pytest.importorskip("jsonschema_rs")
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema_rs.meta.validate(schema)
    valid = jsonschema_rs.validator_for(schema).is_valid
    values = parsed(CHART / "values.yaml")

    assert valid(values)
    assert not valid(values | {"replicas": 3})
    assert not valid(values | {"config": {"IRONCART_MASTER_KEY": "in the open"}})


def test_the_chart_has_the_version_of_the_package() -> None:
    chart = parsed(CHART / "Chart.yaml")
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)

    assert version
    assert chart["appVersion"] == version[1]


def test_the_chart_knows_every_service_and_each_of_its_durable_consumers() -> None:
    declared = {
        name: sorted(each.stream for each in service.durables)
        for name, service in services.every().items()
    }

    assert {name: each["streams"] for name, each in FACTS["services"].items()} == declared
    for name, service in services.every().items():
        assert {each.name for each in service.durables} == {name}
    assert FACTS["ackPendingMax"] == ACK_PENDING_MAX
    assert FACTS["inHandMax"] == MESSAGES_IN_HAND_MAX
    assert parsed(CHART / "values.yaml")["autoscaling"]["lagThreshold"] > MESSAGES_IN_HAND_MAX


def test_a_service_gets_the_secrets_that_it_needs_and_no_other() -> None:
    for name, service in services.every().items():
        secret = [each for each in fields(service.settings) if SECRET_FIELDS.search(each.name)]
        required = {f"IRONCART_{each.name.upper()}" for each in secret if each.required}
        facts = FACTS["services"][name]

        assert set(facts["secrets"]) == required | SECRETS_OF_ALL, name
        assert set(facts["optionalSecrets"]) <= {f"IRONCART_{each.name.upper()}" for each in secret}


def test_the_chart_listens_where_services_do_and_waits_for_their_drain() -> None:
    defaults = {each.name: each.default for each in fields(lifecycle.Settings)}
    values = parsed(CHART / "values.yaml")

    assert defaults["port"] == 8080
    assert values["drainTimeoutSeconds"] == defaults["drain_timeout_s"]


def test_every_metric_on_a_dashboard_is_documented() -> None:
    for path in DASHBOARDS:
        panels = json.loads(path.read_text())["panels"]
        named = {
            series
            for panel in panels
            for target in panel.get("targets", ())
            for series in series_of(target["expr"])
        }

        assert named
        assert named <= documented_series(), path


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    for path in DASHBOARDS:
        panels = json.loads(path.read_text())["panels"]
        cells = [
            (x, y)
            for at in (panel["gridPos"] for panel in panels)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        ]

        assert len({panel["id"] for panel in panels}) == len(panels)
        assert len(set(cells)) == len(cells)
        assert max(x for x, _ in cells) < 24


def test_every_metric_in_an_alert_is_documented() -> None:
    text = (CHART / "templates" / "prometheusrule.yaml").read_text()
    expressions = re.findall(r"^ +expr: '(.+)'$", text, re.MULTILINE)
    named = {series for each in expressions for series in series_of(each)}

    assert len(expressions) == text.count("- alert:")
    assert named <= documented_series()
    assert named >= {
        *("ironcart_consumer_lag_messages", "ironcart_consumer_oldest_seconds"),
        *("ironcart_outbox_oldest_seconds", "ironcart_breaker_state", "ironcart_parked"),
        *("ironcart_dead_letters_total", "ironcart_jobs_due", "ironcart_stream_fill_ratio"),
        *("ironcart_access_refused_total", "ironcart_broker_forbidden_total"),
    }


def test_alerts_begin_where_doctor_warns() -> None:
    at = parsed(CHART / "values.yaml")["monitoring"]["prometheusRule"]["thresholds"]

    assert at["lagMessages"] == LAG_MESSAGES_WARN
    assert at["streamFillRatio"] == FILL_RATIO_WARN
    assert at["outboxSeconds"] == OUTBOX_AGE_S_WARN


def test_the_broker_has_three_nodes_that_sync_and_room_for_every_stream() -> None:
    broker = parsed(DEPLOY / "nats" / "values.yaml")["config"]
    files = broker["jetstream"]["fileStore"]
    room = int(files["maxSize"].removesuffix("Gi"))
    values = parsed(CHART / "values.yaml")["nats"]

    assert broker["cluster"]["enabled"]
    assert broker["cluster"]["replicas"] == len(values["pods"]) == values["streamReplicas"] == 3
    assert broker["jetstream"]["merge"]["sync_interval"] == "always"
    assert broker["nats"]["tls"]["enabled"]
    assert broker["cluster"]["tls"]["enabled"]
    assert broker["monitor"] == {"enabled": True, "port": values["monitorPort"]}
    assert values["streamBytesMax"] == STREAM_BYTES_MAX
    assert len(STREAMS) * STREAM_BYTES_MAX <= room * GIB
    assert room < int(files["pvc"]["size"].removesuffix("Gi"))
