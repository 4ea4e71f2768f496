"""Money is exact, or it is refused; and what the event catalogue promises about itself."""

import json
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ironcart.events import (
    AMOUNT_MINOR_UNITS_MAX,
    CURRENCIES,
    KINDS,
    OWNERS,
    SUBJECTS,
    minor_units,
    money,
)
from ironcart.toolkit.envelope import decode_json, encode_json

CURRENCY = st.sampled_from(sorted(CURRENCIES))


@given(st.integers(0, AMOUNT_MINOR_UNITS_MAX), CURRENCY)
def test_every_amount_survives_the_way_out_and_back(units: int, currency: str) -> None:
    on_the_wire = encode_json(money(units, currency))

    assert minor_units(decode_json(Decimal, on_the_wire), currency) == units


@given(st.integers(0, AMOUNT_MINOR_UNITS_MAX), CURRENCY)
def test_on_the_wire_money_is_a_plain_json_number_with_the_currencys_decimals(
    units: int, currency: str
) -> None:
    text = encode_json(money(units, currency)).decode()

    whole, _, decimals = text.partition(".")
    assert whole.isdigit()
    assert len(decimals) == CURRENCIES[currency]
    assert Fraction(text) * 10 ** CURRENCIES[currency] == units


@given(st.integers(0, AMOUNT_MINOR_UNITS_MAX), st.sampled_from(["EUR", "USD", "CHF"]))
def test_a_producer_that_sends_floats_is_understood_to_the_cent(units: int, currency: str) -> None:
    as_float = json.dumps(units / 100)

    assert minor_units(decode_json(Decimal, as_float.encode()), currency) == units


@given(st.decimals(), CURRENCY)
@example(Decimal("1E-2000000"), "EUR")
@example(Decimal("0.00999999999999999999"), "EUR")
@example(Decimal("999999.990000000000001"), "EUR")
@example(Decimal("0E-30"), "JPY")
@example(Decimal("sNaN"), "EUR")
def test_an_amount_is_taken_exactly_or_refused(amount: Decimal, currency: str) -> None:
    try:
        units = minor_units(amount, currency)
    except ValueError:
        return
    assert Fraction(amount) * 10 ** CURRENCIES[currency] == units
    assert 0 <= units <= AMOUNT_MINOR_UNITS_MAX


@pytest.mark.parametrize(
    ("text", "currency"),
    [
        ("NaN", "EUR"),
        ("sNaN", "EUR"),
        ("Infinity", "EUR"),
        ("-Infinity", "EUR"),
        ("1E+3", "EUR"),
        ("1E+999999", "EUR"),
        ("1E-2000000", "EUR"),
        ("0.001", "EUR"),
        ("19.999", "EUR"),
        ("1.5", "JPY"),
        ("-0.01", "EUR"),
        ("-1", "JPY"),
        ("1000000", "EUR"),
        ("100000000", "JPY"),
        ("9" * 5_000, "EUR"),
        ("0." + "0" * 5_000 + "1", "EUR"),
        ("1", "XAU"),
        ("1", "eur"),
        ("1", ""),
    ],
)
def test_what_is_no_amount_is_refused_in_words(text: str, currency: str) -> None:
    with pytest.raises(ValueError, match=r"amount must be|currency must be|has . decimals"):
        minor_units(Decimal(text), currency)


@pytest.mark.parametrize(
    ("text", "currency", "units"),
    [
        ("0", "EUR", 0),
        ("0.01", "EUR", 1),
        ("129.9", "EUR", 12990),
        ("129.900", "EUR", 12990),
        ("999999.99", "EUR", AMOUNT_MINOR_UNITS_MAX),
        ("99999999", "JPY", AMOUNT_MINOR_UNITS_MAX),
        ("500.0", "JPY", 500),
    ],
)
def test_amounts_up_to_the_largest_are_taken(text: str, currency: str, units: int) -> None:
    assert minor_units(Decimal(text), currency) == units


def test_a_subject_is_its_owner_and_a_fact() -> None:
    for owner, (stream, kinds) in OWNERS.items():
        assert stream == owner.upper()
        for subject in kinds.values():
            assert subject.startswith(f"{owner}.")
            assert subject.count(".") == 1


def test_every_type_has_one_subject_and_one_name() -> None:
    assert len(KINDS) == len(SUBJECTS) == sum(len(kinds) for _, kinds in OWNERS.values())
    assert len({kind.__name__ for kind in SUBJECTS}) == len(SUBJECTS)


def test_events_are_frozen_and_say_what_they_mean() -> None:
    for kind in SUBJECTS:
        assert kind.__struct_config__.frozen
        assert kind.__doc__
