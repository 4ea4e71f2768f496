"""The system that end-to-end tests share, in each process that runs some of them."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from shopping import Shop, System, running_system

# It leaves thousands of orders, which every later check of the system would have to read.
FILLS_THE_SYSTEM = "test_admission.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have it last of this folder, and this folder first."""
    here = Path(__file__).parent
    items.sort(key=lambda item: (item.path.parent != here, item.path.name == FILLS_THE_SYSTEM))


# An idle system takes a tenth of a core: it ends with the last test of this folder.
@pytest.fixture(scope="package")
def system() -> Iterator[System]:
    """The system of all these tests; one that breaks it for good starts its own."""
    with running_system("e2e") as found:
        yield found


@pytest.fixture
async def shop(system: System) -> AsyncIterator[Shop]:
    """The shared system over HTTP; faults are healed afterwards."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=40)) as session:
        shop = Shop(system, session)
        yield shop
        await shop.heal()
