"""Reads Stripe's form-encoded parameters and refuses them the way Stripe does."""

from collections.abc import Container
from functools import lru_cache
from urllib.parse import unquote_plus

from ironcart.embedded.sandbox.records import refuse

MAX_FIELDS = 200
MAX_NAMES_REMEMBERED = 256


class Form:
    """The parameters of one request; every reader refuses a bad value with a 400."""

    def __init__(self, encoded: bytes, allowed: Container[str]) -> None:
        self._values: dict[str, str] = {}
        if not encoded:
            return
        fields = encoded.split(b"&")
        if len(fields) > MAX_FIELDS:
            refuse(400, f"The form has {len(fields)} fields; {MAX_FIELDS} are enough.")
        for field in fields:
            raw_name, _, raw_value = field.partition(b"=")
            name = _name(raw_name)
            if name.partition("[")[0] not in allowed:
                refuse(400, f"Received unknown parameter: {name}", "parameter_unknown", name)
            self._values[name] = _unquoted(raw_value)

    def text(self, name: str) -> str | None:
        """The value; None when it is missing or empty."""
        return self._values.get(name) or None

    def required(self, name: str) -> str:
        """The value, which must be there."""
        value = self._values.get(name)
        if not value:
            refuse(400, f"Missing required param: {name}.", "parameter_missing", name)
        return value

    def integer(self, name: str, low: int, high: int) -> int | None:
        """A whole number within the bounds; None when it is missing."""
        value = self._values.get(name)
        if value is None:
            return None
        digits = value[1:] if value[:1] == "-" else value
        if not (digits.isascii() and digits.isdigit() and len(digits) <= len(str(high))):
            refuse(400, f"Invalid integer: {value}", "parameter_invalid_integer", name)
        number = int(value)
        if not low <= number <= high:
            message = f"This value must be from {low} to {high}; got {number}."
            refuse(400, message, "parameter_invalid_integer", name)
        return number

    def choice(self, name: str, choices: tuple[str, ...]) -> str | None:
        """One of the choices; None when it is missing."""
        value = self.text(name)
        if value is not None and value not in choices:
            refuse(400, f"Invalid {name}: must be one of {', '.join(choices)}", param=name)
        return value

    def flag(self, name: str) -> bool:
        """True or false as the SDK writes them; missing is false."""
        return (self.choice(name, ("true", "false", "True", "False")) or "").lower() == "true"

    def mapping(self, name: str) -> dict[str, str]:
        """The `name[key]=value` pairs."""
        start = f"{name}["
        return {
            key[len(start) : -1]: value
            for key, value in self._values.items()
            if key.startswith(start) and key.endswith("]")
        }


@lru_cache(MAX_NAMES_REMEMBERED)
def _name(raw: bytes) -> str:
    """Names are few, and come again with each request."""
    return _unquoted(raw)


def _unquoted(raw: bytes) -> str:
    try:
        text = raw.decode("ascii")
        return unquote_plus(text, errors="strict") if "%" in text or "+" in text else text
    except UnicodeDecodeError as error:
        refuse(400, f"The form is not percent-encoded UTF-8: {error.reason}.")
