"""What schemathesis checks of our services beyond its own checks; its command line loads this."""

from typing import Any

import schemathesis
from schemathesis.checks import CheckContext
from schemathesis.specs.openapi.checks import positive_data_acceptance

PROBLEM_TYPE = "application/problem+json"
SAID_BY_CODE = ("POST /orders", "POST /webhooks/stripe", "POST /webhook-endpoints")


@schemathesis.check
def every_error_is_a_problem(
    ctx: CheckContext, response: schemathesis.Response, case: "schemathesis.Case[Any]"
) -> None:
    """Hold every error, documented or not, to RFC 9457."""
    if response.status_code < 400:
        return
    (kind,) = response.headers["content-type"]
    assert kind == PROBLEM_TYPE, f"an error is {kind}"
    problem = response.json()
    assert problem["status"] == response.status_code, problem
    assert problem["title"], problem


@schemathesis.check
def what_a_schema_can_judge_is_accepted(
    ctx: CheckContext, response: schemathesis.Response, case: "schemathesis.Case[Any]"
) -> bool | None:
    """Run `positive_data_acceptance` on all but what no schema can judge.

    That is: a cursor must be one that we gave; money has its currency's decimals at most; an
    amount is the sum of the lines; a local part has 64 bytes at most; a whole number is written
    without `.0`; a webhook is signed; a URL has a host. There, data that are valid by schema may
    be 400 (never anything else).
    """
    judged_by_code = (
        case.operation.label in SAID_BY_CODE
        or "cursor" in (case.query or {})
        or _has_floats(case.body)
    )
    if judged_by_code:
        return None
    return positive_data_acceptance(ctx, response, case)


@schemathesis.hook
def map_case(context: schemathesis.HookContext, case: "schemathesis.Case[Any]") -> Any:
    """Make an order that is valid by schema one that can be taken, so that there are orders.

    Its prices become whole ones that come to little, and what only code can judge is left out.
    """
    positive = case.meta is not None and case.meta.generation.mode.is_positive
    body: Any = case.body
    if positive and case.operation.label == "POST /orders" and isinstance(body, dict):
        kept = {name: value for name, value in body.items() if name not in {"amount", "email"}}
        lines: list[Any] = [
            {**line, "quantity": min(int(line["quantity"]), 1_000), "unit_price": 1}
            for line in kept["items"]
        ]
        case.body = {**kept, "items": lines}
    return case


def _has_floats(body: Any) -> bool:
    return isinstance(body, dict) and any(isinstance(each, float) for each in body.values())
