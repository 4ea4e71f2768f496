"""Settings: every fault at once, whose variable wins, and nothing secret said."""

from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct

from ironcart.toolkit import lifecycle
from ironcart.toolkit.outcomes import InvalidSettings, Refused
from ironcart.toolkit.settings import environment, load, load_all

SECRET = "hunter2"


class Shop(Struct, frozen=True, kw_only=True):
    database_url: str
    api_key: str
    port: Annotated[int, Meta(ge=1, le=65535)] = 8080
    timeout_s: float = 1.5
    quick: bool = False
    mode: Literal["live", "test"] = "test"
    limit: Decimal = Decimal(10)


class Other(Struct, frozen=True):
    api_key: str
    mail_url: str


NEEDED = {"IRONCART_DATABASE_URL": "postgresql://", "IRONCART_API_KEY": SECRET}


def test_values_are_read_as_their_types_and_the_rest_has_its_defaults() -> None:
    found = load(Shop, NEEDED | {"IRONCART_PORT": "9", "IRONCART_QUICK": "true"})

    assert (found.port, found.quick, found.timeout_s) == (9, True, 1.5)


def test_all_faults_are_reported_together() -> None:
    wrong = {"IRONCART_PORT": "70000", "IRONCART_TIMEOUT_S": "soon", "IRONCART_QUICK": "maybe"}
    with pytest.raises(InvalidSettings) as refused:
        load(Shop, wrong)

    for name in ("DATABASE_URL", "API_KEY", "PORT", "TIMEOUT_S", "QUICK"):
        assert f"IRONCART_{name}" in str(refused.value)
    assert "IRONCART_MODE" not in str(refused.value)


def test_the_faults_of_several_structs_are_reported_together_and_once() -> None:
    with pytest.raises(InvalidSettings) as refused:
        load_all((Shop, Other), {})

    for name in ("DATABASE_URL", "API_KEY", "MAIL_URL"):
        assert f"IRONCART_{name} is not set" in str(refused.value)


def test_a_services_own_variable_wins_over_the_shared_one() -> None:
    environ = NEEDED | {"IRONCART_PORT": "1", "IRONCART_ORDERS_PORT": "2"}

    assert load(Shop, environ, "orders").port == 2
    assert load(Shop, environ, "payments").port == 1
    assert load(Shop, environ).port == 1


def test_an_empty_variable_is_as_good_as_none() -> None:
    environ = NEEDED | {"IRONCART_PORT": "1", "IRONCART_ORDERS_PORT": ""}

    assert load(Shop, environ, "orders").port == 1
    with pytest.raises(InvalidSettings, match="IRONCART_API_KEY is not set"):
        load(Shop, NEEDED | {"IRONCART_API_KEY": ""})


@pytest.mark.parametrize("field", ["PORT", "TIMEOUT_S", "QUICK", "MODE", "LIMIT"])
def test_a_value_is_never_printed_back(field: str) -> None:
    with pytest.raises(InvalidSettings, match=f"IRONCART_{field}") as refused:
        load(Shop, NEEDED | {f"IRONCART_{field}": SECRET})

    assert SECRET not in str(refused.value)


@given(st.dictionaries(st.sampled_from(["PORT", "TIMEOUT_S", "QUICK", "MODE", "LIMIT"]), st.text()))
def test_whatever_the_environment_holds_it_is_read_or_refused_in_words(
    values: dict[str, str],
) -> None:
    environ = NEEDED | {f"IRONCART_{name}": value for name, value in values.items()}

    with suppress(InvalidSettings):
        load(Shop, environ)


def test_the_environment_is_a_copy() -> None:
    copy = environment()
    copy["IRONCART_TEST"] = "x"

    assert "IRONCART_TEST" not in environment()


def test_a_service_needs_somebody_who_may_call_it(tmp_path: Path) -> None:
    environ = {"IRONCART_NATS_URL": "nats://127.0.0.1:1", "IRONCART_DATABASE_URL": "postgresql://"}
    issuer = {"IRONCART_OIDC_ISSUER": "https://issuer.example"}
    file = tmp_path / "keys.json"
    with pytest.raises(InvalidSettings, match="set IRONCART_OIDC_AUDIENCE"):
        load(lifecycle.Settings, environ | issuer)
    assert load(
        lifecycle.Settings, environ | issuer | {"IRONCART_OIDC_AUDIENCE": "ironcart"}
    ).gate()
    with_keys = load(lifecycle.Settings, environ | {"IRONCART_API_KEYS_FILE": str(file)})
    with pytest.raises(Refused, match="make it readable"):
        with_keys.gate()
    file.write_text('{"keys":[]}')
    assert with_keys.gate()


def test_without_api_keys_a_service_refuses_to_be_open_to_the_network() -> None:
    urls = {"IRONCART_NATS_URL": "nats://127.0.0.1:1", "IRONCART_DATABASE_URL": "postgresql://"}

    with pytest.raises(InvalidSettings, match="IRONCART_AUTH=off"):
        load(lifecycle.Settings, urls)
    with pytest.raises(InvalidSettings, match=r"IRONCART_HOST=127\.0\.0\.1"):
        load(lifecycle.Settings, urls | {"IRONCART_AUTH": "off", "IRONCART_HOST": "0.0.0.0"})
    allowed = load(lifecycle.Settings, urls | {"IRONCART_AUTH": "off", "IRONCART_HOST": "::1"})
    assert allowed.drain_timeout_s == 30
    assert allowed.gate() is None
