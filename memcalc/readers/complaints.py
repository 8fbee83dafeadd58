"""pydantic's findings about a config, in a person's words: which key, what it holds, the rule, and the way out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from memcalc.errors import NO_VALUE, InputError

_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "model": "a mapping",
    "mapping": "a mapping",
}
"""What each kind of pydantic's ``<kind>_type`` errors asks for."""


def complaint(
    error: ValidationError, path: str, fields: Mapping[str, FieldInfo], spelled: Mapping[str, str] | None = None
) -> InputError:
    """The first finding as an error, the other keys at fault named after it.

    Args:
        error: what pydantic raised.
        path: the dotted path of the config, as ``model``.
        fields: the config's declared keys, for their defaults.
        spelled: key -> the spelling the config used for it, where that is another.
    """
    findings = error.errors(include_url=False)
    places = [_place(path, finding, spelled or {}) for finding in findings]
    rule, way_out, value = _said(findings[0], fields)
    others = list(dict.fromkeys(place for place in places if place != places[0]))
    if others:
        more = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        way_out = f"{way_out}; also look at {more}" if way_out else f"also look at {more}"
    return InputError(places[0], value, rule, way_out)


def _place(path: str, finding: ErrorDetails, spelled: Mapping[str, str]) -> str:
    # in a union pydantic appends which branch failed, as ('attn_type', 'list[int]'): that is no key
    parts = [str(part) for part in finding["loc"] if not str(part).endswith("]") and part not in ("int", "str", "bool")]
    if parts:
        parts[0] = spelled.get(parts[0], parts[0])
    return ".".join((path, *parts))


def _said(finding: ErrorDetails, fields: Mapping[str, FieldInfo]) -> tuple[str, str, Any]:
    """(rule, way out, value as shown)."""
    kind, value, context = finding["type"], finding["input"], finding.get("ctx", {})
    example = _example(finding, fields)
    if kind == "missing":
        return "is missing", f"add it{example}", NO_VALUE
    if kind in ("greater_than", "greater_than_equal"):
        least = context["gt"] + 1 if kind == "greater_than" else context["ge"]
        return f"is below {least:,}", f"give {least:,} or more{example}", value
    if kind in ("less_than", "less_than_equal"):
        most = context["lt"] - 1 if kind == "less_than" else context["le"]
        return f"is above {most:,}, more than any model has", f"check the number{example}", value
    if kind == "literal_error":
        return "is not one of the choices", f"use {context['expected'].replace(chr(39), '')}", value
    if kind in ("value_error", "assertion_error"):
        rule, _, way_out = str(context["error"]).partition("; ")
        return rule, way_out, value
    wanted = _WANTED.get(kind.split("_")[0])
    if wanted is None:
        return f"breaks a rule ({finding['msg'].lower()})", f"see the model's config.json{example}", value
    return _wrong_type(value, wanted, example)


def _wrong_type(value: object, wanted: str, example: str) -> tuple[str, str, Any]:
    if value is None:
        return f"is not {wanted}", "leave the key out to take its default", "null"
    if isinstance(value, bool):
        return f"is not {wanted}", f"give {wanted}{example}", str(value).lower()
    if isinstance(value, str):
        plain = value.strip().removeprefix("-").replace(".", "", 1).isdigit()
        way_out = f"write {value.strip()} without quotes" if plain and "number" in wanted else f"give {wanted}{example}"
        return f"is text, not {wanted}", way_out, repr(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return f"is not written as {wanted}", f"write {int(value)}", value
    return f"is not {wanted}", f"give {wanted}{example}", value


def _example(finding: ErrorDetails, fields: Mapping[str, FieldInfo]) -> str:
    """The key's default, as a hint of the usual size."""
    if len(finding["loc"]) != 1:
        return ""
    field = fields.get(str(finding["loc"][0]))
    default = None if field is None else field.default
    if isinstance(default, bool):
        return f" (the default is {str(default).lower()})"
    return f" (the default is {default})" if isinstance(default, int | float | str) else ""
