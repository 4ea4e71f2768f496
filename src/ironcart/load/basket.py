"""Random orders with exact prices: money is whole cents until it is written as text."""

import random
from dataclasses import dataclass

LINES_MAX = 3
QUANTITY_MAX = 3
CENTS_MIN = 100
CENTS_MAX = 19_999
CENTS = 100


@dataclass(frozen=True, slots=True)
class NewOrder:
    """One order to place: its number in the run, its key, its body, and what it takes of stock."""

    number: int
    key: str
    body: bytes
    lines: dict[str, int]


def sku_names(count: int) -> list[str]:
    """Return the generator's own SKUs."""
    return [f"LOAD-{number:04}" for number in range(1, count + 1)]


class Basket:
    """Makes orders one after the other; the same seed and run make the same orders."""

    def __init__(self, run: str, *, customers: int, skus: int, seed: int | None = None) -> None:
        self.key_prefix = f"load-{run}-"
        self._random = random.Random(seed)  # noqa: S311 - shopping, not secrets
        self._customers = customers
        self._skus = sku_names(skus)
        self._number = 0

    def next(self) -> NewOrder:
        """Return the next order: one to three lines of different SKUs, and a mail address."""
        self._number += 1
        draw = self._random
        customer = draw.randint(1, self._customers)
        skus = draw.sample(self._skus, min(draw.randint(1, LINES_MAX), len(self._skus)))
        lines = {sku: draw.randint(1, QUANTITY_MAX) for sku in skus}
        prices = [draw.randint(CENTS_MIN, CENTS_MAX) for _ in skus]
        return NewOrder(
            number=self._number,
            key=f"{self.key_prefix}{self._number}",
            body=write_body(customer, lines, prices),
            lines=lines,
        )


def write_body(customer: int, lines: dict[str, int], prices: list[int]) -> bytes:
    """Return the body of `POST /orders`; prices are in cents and stay exact."""
    items = ",".join(
        f'{{"sku":"{sku}","quantity":{quantity},"unit_price":{price // CENTS}.{price % CENTS:02}}}'
        for (sku, quantity), price in zip(lines.items(), prices, strict=True)
    )
    return (
        f'{{"customer_id":"LOAD-C{customer:05}","currency":"EUR","items":[{items}],'
        f'"email":"load-{customer}@shop.example"}}'
    ).encode()


def other_body(body: bytes) -> bytes:
    """Return the body of another basket, which the same key must not accept."""
    return body.replace(b'"quantity":', b'"quantity":1', 1)
