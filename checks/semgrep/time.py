"""What the rule of time.yaml has to find, and what it has to leave alone."""

import time
from datetime import UTC, datetime


def by_the_wall_clock(work, started_at, deadline):
    # ruleid: no-duration-by-the-wall-clock
    age_s = time.time() - started_at
    # ruleid: no-duration-by-the-wall-clock
    left = deadline - datetime.now(UTC)
    # ruleid: no-duration-by-the-wall-clock
    until = time.time() + 30
    began = time.time()
    work()
    ended = time.time()
    # ruleid: no-duration-by-the-wall-clock
    return age_s, left, until, ended - began


def by_a_clock_that_only_goes_forward(work):
    began = time.monotonic()
    work()
    # ok: no-duration-by-the-wall-clock
    return time.monotonic() - began


def a_time_is_not_a_duration():
    # ok: no-duration-by-the-wall-clock
    return int(time.time()), datetime.now(UTC).isoformat()
