"""The pool on a real Postgres: what a statement may be given."""

import sys
from collections.abc import AsyncIterator
from types import FrameType

import asyncpg
import pytest

from ironcart.toolkit.database import Database

COUNT = "SELECT count(*) FROM unnest($1::text[], $2::bigint[]) AS u(name, n)"
ELEMENTS = 500


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    found = Database(database_url, "public", "test")
    yield found
    await found.close()


@pytest.mark.parametrize("kind", [list, tuple])
async def test_an_array_is_a_list_or_a_tuple(
    database: Database, kind: type[list[int]] | type[tuple[int, ...]]
) -> None:
    row = await database.fetchrow("SELECT $1::int[] AS one, $2::int[] AS none", kind([1, 2]), [])
    assert row is not None
    assert (row["one"], row["none"]) == ([1, 2], [])


async def test_an_array_that_is_neither_is_refused_before_it_is_sent(database: Database) -> None:
    with pytest.raises(asyncpg.DataError, match="sized iterable container expected"):
        await database.fetch("SELECT $1::int[]", {1: "a"}.keys())


async def test_elements_of_an_array_are_not_looked_at_through_an_abstract_class(
    database: Database,
) -> None:
    looks = 0

    def note(frame: FrameType, event: str, _: object) -> None:
        nonlocal looks
        looks += event == "call" and frame.f_code.co_name == "__instancecheck__"

    columns = (["name"] * ELEMENTS, list(range(ELEMENTS)))
    await database.fetch(COUNT, *columns)
    sys.setprofile(note)
    try:
        await database.fetch(COUNT, *columns)
    finally:
        sys.setprofile(None)
    assert looks < ELEMENTS
