"""The OpenAPI document of a service, generated from the structs that its bodies are read into."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import msgspec

from ironcart.toolkit.http.problems import PROBLEM_TYPE, ProblemBody

OPENAPI_VERSION = "3.1.0"
UNAVAILABLE = 503
# What any request may meet: too slow, too many headers, not now.
ALWAYS = (408, 431, UNAVAILABLE)
_REFERENCE = "#/components/schemas/{name}"


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
    service: str, version: str, operations: Sequence[tuple[str, str, Operation]]
) -> dict[str, Any]:
    """Write the document for `(method, path, operation)` triples."""
    kinds: list[Any] = [ProblemBody]
    for _, _, operation in operations:
        kinds += [kind for kind in (operation.body, *operation.answers.values()) if kind]
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REFERENCE)
    by_kind = dict(zip([id(kind) for kind in kinds], schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for method, path, operation in operations:
        paths.setdefault(path, {})[method.lower()] = _operation(operation, by_kind)
    return {
        "openapi": OPENAPI_VERSION,
        "info": {"title": f"Ironcart {service}", "version": version},
        "paths": paths,
        "components": {"schemas": _portable(components)},
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


def _operation(operation: Operation, by_kind: Mapping[int, Any]) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    for status, kind in operation.answers.items():
        answers[str(status)] = _answer(status, kind, operation, by_kind)
    for status in sorted({*operation.problems, *ALWAYS}):
        answers[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {PROBLEM_TYPE: {"schema": by_kind[id(ProblemBody)]}},
        }
    answers[str(UNAVAILABLE)]["headers"] = {
        "Retry-After": {"description": "seconds", "schema": {"type": "integer"}}
    }
    found: dict[str, Any] = {"summary": operation.summary, "responses": answers}
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
