"""An order is read in one of two ways; whatever is in it, they agree."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironcart.services.orders.handlers.check import Draft, check, read_carefully, read_usual

PRICES = st.sampled_from(
    ["1", "19.9", "19.99", "0", "0.00", "999999.99", "1000000", "1e2", "1.999", "-1", "-0", '"1"']
)
QUANTITIES = st.sampled_from(["1", "3", "1000000", "1000001", "0", "-1", "1.0", "2.5", '"2"'])
SKUS = st.sampled_from(['"A"', '"A.b-c_d"', '""', '"a b"', "1", "null", '"é"'])
OTHERS = {
    "customer_id": ['"C-1"', '""', "7", '"a/b"'],
    "currency": ['"EUR"', '"JPY"', '"XXX"', '"eur"', "null"],
    "amount": ["1", "19.99", "59.97", "1e1", "0", '"1"'],
    "email": ['"a@b.example"', '"a@b"', '"a b@c.de"', "null", '"é@b.example"'],
    "name": ['"Ada"', '""', '"a\\u0007"', "3"],
    "payment_method": ['"pm_card_visa"', '""', '"a-b"'],
    "surprise": ["1"],
}


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Orders, most of them with something odd."""
    lines = []
    for _ in range(draw(st.integers(0, 3))):
        line = {"sku": draw(SKUS), "quantity": draw(QUANTITIES), "unit_price": draw(PRICES)}
        if draw(st.integers(0, 9)) == 0:
            line.pop(draw(st.sampled_from(sorted(line))))
        lines.append("{" + ",".join(f'"{name}":{value}' for name, value in line.items()) + "}")
    fields = {"customer_id": '"C-1"', "items": f"[{','.join(lines)}]"}
    for name, values in OTHERS.items():
        if draw(st.integers(0, 3)) == 0:
            fields[name] = draw(st.sampled_from(values))
    return ("{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}").encode()


@given(body=bodies(), currency=st.sampled_from(["EUR", "JPY"]))
def test_what_the_short_way_takes_the_careful_way_reads_the_same(
    body: bytes, currency: str
) -> None:
    usual, careful = read_usual(body, currency), read_carefully(body, currency)
    assert usual == (careful if isinstance(careful, Draft) else None)
    assert check(body, currency=currency) == careful


@pytest.mark.parametrize("price", ["19.99", "19.9", "19", "0.01"])
def test_a_price_gets_the_decimals_of_its_currency(price: str) -> None:
    line = f'{{"sku":"A","quantity":2,"unit_price":{price}}}'
    read = read_usual(f'{{"customer_id":"C-1","items":[{line}]}}'.encode(), "EUR")
    assert read is not None
    assert str(read.items[0].unit_price) == f"{float(price):.2f}"
    assert read.amount_minor == round(float(price) * 200)


def test_deep_nesting_is_left_to_the_careful_way() -> None:
    body = json.dumps({"customer_id": "C-1", "items": []}).encode()[:-1] + b',"x":' + b"[" * 5000
    assert read_usual(body, "EUR") is None
