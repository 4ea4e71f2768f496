"""An order is read in one of two ways; whatever is in it, they agree."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ironcart.services.orders.handlers.check import Draft, check, read_carefully, read_usual

USUAL = {
    "customer_id": ['"C-1"'],
    "currency": ['"EUR"', '"JPY"'],
    "amount": ["39.98"],
    "email": ['"a@b.example"'],
    "name": ['"Ada"'],
    "payment_method": ['"pm_card_visa"'],
}
ODD = {
    "customer_id": ['""', "7", '"a/b"', "null"],
    "currency": ['"XXX"', '"eur"', "null"],
    "amount": ["1", "39.980", "1e1", "0", '"39.98"', "null", "[]"],
    "email": ['"a@b"', '"a b@c.de"', "null", '"é@b.example"', '"@b.example"'],
    "name": ['""', '"a\\u0007"', "3"],
    "payment_method": ['""', '"a-b"'],
    "surprise": ["1"],
    "items": ["[]", "{}", "null", "[1]"],
}
USUAL_LINE = {"sku": ['"A"', '"A.b-c_d"'], "quantity": ["2"], "unit_price": ["19.99", "20", "7.5"]}
ODD_LINE = {
    "sku": ['""', '"a b"', "1", "null", '"é"'],
    "quantity": ["0", "-1", "1.0", "2.5", '"2"', "1000001", "null"],
    "unit_price": ['"19.99"', '"20"', "1e2", "1.999", "-1", "-0", "1000000", "null", "0"],
    "colour": ['"red"'],
}


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Orders with at most two odd things."""
    lines = [
        {name: draw(st.sampled_from(values)) for name, values in USUAL_LINE.items()}
        for _ in range(draw(st.integers(1, 3)))
    ]
    fields = {
        name: draw(st.sampled_from(values))
        for name, values in USUAL.items()
        if name == "customer_id" or draw(st.booleans())
    }
    odd: dict[str, str] = {}
    for _ in range(draw(st.integers(0, 2))):
        target, what = draw(st.sampled_from([(lines[-1], ODD_LINE), (odd, ODD)]))
        name = draw(st.sampled_from(sorted(what)))
        target[name] = draw(st.sampled_from(what[name]))
    if draw(st.integers(0, 9)) == 0:
        lines[0].pop(draw(st.sampled_from(sorted(USUAL_LINE))), None)
    written = ["{" + ",".join(f'"{n}":{v}' for n, v in line.items()) + "}" for line in lines]
    fields = {**fields, "items": f"[{','.join(written)}]", **odd}
    return ("{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}").encode()


@settings(max_examples=600)
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


@pytest.mark.parametrize("price", ['"19.99"', '"20"', "1e1", "null", "[]"])
def test_money_that_is_no_plain_number_is_left_to_the_careful_way(price: str) -> None:
    line = f'{{"sku":"A","quantity":2,"unit_price":{price}}}'
    assert read_usual(f'{{"customer_id":"C-1","items":[{line}]}}'.encode(), "EUR") is None
    usual = '{"sku":"A","quantity":2,"unit_price":10.00}'
    body = f'{{"customer_id":"C-1","amount":{price},"items":[{usual}]}}'.encode()
    assert read_usual(body, "EUR") is None


def test_deep_nesting_is_left_to_the_careful_way() -> None:
    body = json.dumps({"customer_id": "C-1", "items": []}).encode()[:-1] + b',"x":' + b"[" * 5000
    assert read_usual(body, "EUR") is None
