"""Streams and consumers as data: what differs is said in words, what the broker adds is not."""

from typing import Any

import pytest

from ironcart.events import OWNERS, STREAMS, durable, kinds_of
from ironcart.toolkit.topology import DEAD_LETTER_BYTES_MAX, PAYLOAD_BYTES_MAX, Durable, difference

DURABLE = Durable("inventory", "ORDERS", ("orders.created", "orders.cancelled"))


def test_what_is_as_declared_differs_in_nothing() -> None:
    for stream in STREAMS:
        declared = stream.config(replicas=1, bytes_max=10)
        assert (
            difference(declared, declared | {"cluster": {}, "metadata": {"_nats.ver": "x"}}) == []
        )
    assert difference(DURABLE.config(), DURABLE.config()) == []


def test_a_field_that_differs_is_named_with_both_values() -> None:
    declared = STREAMS[0].config(replicas=3, bytes_max=10)
    phrases = difference(declared, declared | {"num_replicas": 1, "deny_delete": False})

    assert sorted(phrases) == [
        "deny_delete is False, declared True",
        "num_replicas is 1, declared 3",
    ]


def test_an_absent_field_counts_as_zero() -> None:
    declared = STREAMS[0].config(replicas=1, bytes_max=10)
    without = {name: value for name, value in declared.items() if value not in (0, False)}

    assert difference(declared, without) == []
    del without["deny_purge"]
    assert difference(declared, without) == ["deny_purge is None, declared True"]


def test_subjects_may_come_in_any_order_but_not_be_others() -> None:
    config = DURABLE.config()
    other_way_round = config | {"filter_subjects": config["filter_subjects"][::-1]}
    one_less = config | {"filter_subjects": ["orders.created"]}

    assert difference(config, other_way_round) == []
    assert len(difference(config, one_less)) == 1


def test_a_single_filter_is_the_same_in_the_brokers_singular() -> None:
    config = Durable("audit", "DEADLETTERS", ("dlq.>",)).config()
    answer: dict[str, Any] = {k: v for k, v in config.items() if k != "filter_subjects"}

    assert difference(config, answer | {"filter_subject": "dlq.>"}) == []
    assert difference(config, answer) == ["filter_subjects is [], declared ['dlq.>']"]


def test_every_subject_belongs_to_one_stream() -> None:
    subjects = [subject for stream in STREAMS for subject in stream.subjects]

    assert len(subjects) == len(set(subjects))
    assert {stream.name for stream in STREAMS} == {
        *(name for name, _ in OWNERS.values()),
        "DEADLETTERS",
    }


def test_a_dead_letter_fits_with_its_reason_into_a_message() -> None:
    assert DEAD_LETTER_BYTES_MAX < PAYLOAD_BYTES_MAX


def test_a_durable_takes_the_types_it_names_or_the_whole_stream() -> None:
    kinds = OWNERS["payments"][1]
    first = next(iter(kinds))

    assert durable("audit", "PAYMENTS").subjects == tuple(kinds.values())
    assert kinds_of(durable("orders", "PAYMENTS", [first])) == {kinds[first]: first}
    with pytest.raises(StopIteration):
        durable("orders", "NOSUCH")
