"""What the rule of money.yaml has to find, and what it has to leave alone."""

from decimal import Decimal


class Line:
    # ruleid: no-float-for-money
    unit_price: float
    # ok: no-float-for-money
    amount: Decimal
    # ok: no-float-for-money
    delay_s: float = 0.5


def roughly(order, amount_minor):
    # ruleid: no-float-for-money
    whole = float(order.amount)
    # ruleid: no-float-for-money
    part = amount_minor / 100
    # ruleid: no-float-for-money
    return whole, part, Decimal(19.99)


def exactly(amount_minor, waited_s, turns):
    # ok: no-float-for-money
    return Decimal(amount_minor).scaleb(-2), waited_s / turns, Decimal("19.99")
