"""What the rules of input.yaml have to find, and what they have to leave alone."""

import re

from msgspec import Meta


def trusting(request):
    # ruleid: no-assert-for-input
    assert request.limit < 500
    # ruleid: no-pattern-that-lets-a-line-break-in
    return re.match("^[A-Z]{3}$", request.currency), Meta(min_length=1)


# ruleid: no-pattern-that-lets-a-line-break-in
CURRENCY = Meta(pattern="^[A-Z]{3}$")


def careful(request, found):
    # ok: no-assert-for-input
    assert found is not None
    # ok: no-pattern-that-lets-a-line-break-in
    return re.match(r"^[A-Z]{3}\Z", request.currency), re.fullmatch("[A-Z]{3}", request.currency)
