"""What the rule of errors.yaml has to find, and what it has to leave alone."""

from contextlib import suppress


def quiet(work, log):
    # ruleid: no-error-swallowed
    try:
        work()
    except Exception:
        pass
    # ruleid: no-error-swallowed
    try:
        work()
    except:
        log()
    # ruleid: no-error-swallowed
    with suppress(Exception):
        work()


def said(work, log):
    # ok: no-error-swallowed
    try:
        work()
    except Exception as error:
        log(error)
    # ok: no-error-swallowed
    with suppress(ConnectionError):
        work()
