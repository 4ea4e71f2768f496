"""The OpenAPI document of a service, generated from the structs that its bodies are read into."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import msgspec

from ironcart.toolkit.http.access import Scope
from ironcart.toolkit.http.problems import PROBLEM_TYPE, ProblemBody

OPENAPI_VERSION = "3.1.0"
UNAVAILABLE = 503
# What any request may meet: too slow, too many headers, not now.
ALWAYS = (408, 431, UNAVAILABLE)
# What any may meet that needs a key: who it is from, what that may do, and how much of it.
GUARDED = (401, 403, 429)
_REFERENCE = "#/components/schemas/{name}"
_BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": "an API key, or a token of the OIDC issuer; an operator's does for everything",
}
_HEADERS = {
    "WWW-Authenticate": {"description": "RFC 6750", "schema": {"type": "string"}},
    "Retry-After": {"description": "seconds", "schema": {"type": "integer"}},
    "RateLimit-Policy": {
        "description": "how many requests (q) within how many seconds (w)",
        "schema": {"type": "string"},
    },
    "RateLimit": {
        "description": "how many are left (r), and the seconds until all are back (t)",
        "schema": {"type": "string"},
    },
}
_SAID_WITH = {
    401: ("WWW-Authenticate",),
    403: ("WWW-Authenticate",),
    429: ("Retry-After", "RateLimit-Policy", "RateLimit"),
    UNAVAILABLE: ("Retry-After",),
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: `place` is path, query or header; `schema` is JSON Schema."""

    name: str
    place: str
    description: str
    schema: Mapping[str, Any]
    required: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """What a stranger needs to know about one route.

    `answers` maps a status to the struct of its body (None: no body; of a stream: one event); a
    status of 400 or more is always a problem and needs only its number in `problems`; `ALWAYS`
    goes without saying. `example` is a body that works as it stands; a body may be left out only
    when it is `body_optional`.
    """

    summary: str
    answers: Mapping[int, Any]
    problems: Sequence[int] = ()
    parameters: Sequence[Parameter] = ()
    body: Any = None
    example: Any = None
    media_type: str = "application/json"
    headers: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    body_optional: bool = False


def document(
    service: str,
    version: str,
    operations: Sequence[tuple[str, str, Operation, Scope | None]],
) -> dict[str, Any]:
    """Write the document for `(method, path, operation, scope that is needed)`; None needs none."""
    kinds: list[Any] = [ProblemBody]
    for _, _, operation, _ in operations:
        kinds += [kind for kind in (operation.body, *operation.answers.values()) if kind]
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REFERENCE)
    by_kind = dict(zip([id(kind) for kind in kinds], schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for method, path, operation, needed in operations:
        paths.setdefault(path, {})[method.lower()] = _operation(operation, by_kind, needed)
    return {
        "openapi": OPENAPI_VERSION,
        "info": {"title": f"Ironcart {service}", "version": version},
        "paths": paths,
        "components": {
            "schemas": _portable(components),
            "securitySchemes": {"bearer": _BEARER},
        },
    }


def _portable(schema: Any) -> Any:
    """Say in JSON Schema what msgspec and Python say their own way.

    Decimal is documented as a string: on our wire it is a number. The end of a text is `\\Z` in
    Python, whose `$` lets a newline through, and `$` in ECMAScript, which schemas go by.
    """
    if isinstance(schema, Mapping):
        found = {key: _portable(value) for key, value in schema.items()}
        if found.get("format") == "decimal":
            del found["format"]
            found["type"] = "number"
        if isinstance(pattern := found.get("pattern"), str):
            found["pattern"] = pattern.replace(r"\Z", "$")
        return found
    if isinstance(schema, list):
        return [_portable(value) for value in schema]
    return schema


def _operation(
    operation: Operation, by_kind: Mapping[int, Any], allows: Scope | None
) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    for status, kind in operation.answers.items():
        answers[str(status)] = _answer(status, kind, operation, by_kind)
    guarded = () if allows is None else GUARDED
    for status in sorted({*operation.problems, *ALWAYS, *guarded}):
        answers[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {PROBLEM_TYPE: {"schema": by_kind[id(ProblemBody)]}},
        }
        if names := _SAID_WITH.get(status):
            answers[str(status)]["headers"] = {name: _HEADERS[name] for name in names}
    enough = sorted({allows, Scope.OPERATOR}) if allows is not None else []
    found: dict[str, Any] = {
        "summary": operation.summary,
        "security": [{"bearer": [scope]} for scope in enough],
        "responses": answers,
    }
    if operation.parameters:
        found["parameters"] = [
            {
                "name": parameter.name,
                "in": parameter.place,
                "description": parameter.description,
                "required": parameter.required or parameter.place == "path",
                "schema": _portable(parameter.schema),
            }
            for parameter in operation.parameters
        ]
    if operation.body is not None:
        content = {"schema": by_kind[id(operation.body)]}
        if operation.example is not None:
            content["example"] = operation.example
        needed = not operation.body_optional
        found["requestBody"] = {"required": needed, "content": {"application/json": content}}
    return found


def _answer(
    status: int, kind: Any, operation: Operation, by_kind: Mapping[int, Any]
) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if kind is not None:
        answer["content"] = {operation.media_type: {"schema": by_kind[id(kind)]}}
    if headers := operation.headers.get(status):
        answer["headers"] = {
            name: {"description": text, "schema": {"type": "string"}}
            for name, text in headers.items()
        }
    return answer
