"""pydantic's findings, said the way memcalc says errors: path, value, rule, way out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from memcalc.errors import NO_VALUE, InputError, did_you_mean, either

_RULES = {
    "int_type": "is not a whole number",
    "int_parsing": "is not a whole number",
    "int_from_float": "is not a whole number",
    "float_type": "is not a number",
    "float_parsing": "is not a number",
    "finite_number": "is not a finite number",
    "bool_type": "is not true or false",
    "bool_parsing": "is not true or false",
    "string_type": "is not text",
    "list_type": "is not a list",
    "dict_type": "is not a mapping",
    "model_type": "is not a mapping",
    "model_attributes_type": "is not a mapping",
    "int_parsing_size": "is too large to be a size",
}

_WAYS_OUT = {
    "int_type": "give one", "int_parsing": "give one", "int_from_float": "give one", "float_type": "give one",
    "float_parsing": "give one", "finite_number": "give one that is", "bool_type": "give one of them",
    "bool_parsing": "give one of them", "string_type": "put it in quotes", "list_type": "write it in brackets",
    "int_parsing_size": "give a smaller one",
}  # fmt: skip


def explain(error: ValidationError, path: str, known: Iterable[str] = ()) -> InputError:
    """The first finding as an :class:`InputError`; ``known`` are the keys an unknown one may have meant."""
    findings = error.errors(include_url=False)
    finding = findings[0]
    loc, kind, context = finding["loc"], finding["type"], finding.get("ctx", {})
    of_it = [each for each in findings if len(each["loc"]) == len(loc) and each["loc"][:-1] == loc[:-1]]
    offered = _offered(of_it) if loc and loc[-1] in BRANCHES else []
    where = ".".join(str(part) for part in (path, *(loc[:-1] if offered else loc)) if part != "")
    if offered:
        finite = not any(each["type"] == "finite_number" for each in of_it)
        rule = f"is not {either(offered)}" if finite else "is not a finite number"
        return InputError(where, finding["input"], rule, "give one of them" if finite else "give one that is")
    if kind == "extra_forbidden":
        return InputError(where, NO_VALUE, "is not a known key", did_you_mean(str(finding["loc"][-1]), known))
    if kind == "missing":
        return InputError(where, NO_VALUE, "is missing", "add it")
    rule, way_out = _rule(kind, context, str(finding["msg"]))
    return InputError(where, finding["input"], rule, way_out)


BRANCHES = {
    "bool": "true, false", "int": "a whole number", "float": "a number", "str": "text", "list[any]": "a list",
    "dict[str,any]": "a mapping",
}  # fmt: skip
"""What pydantic puts behind the path of a value that may be one of several kinds, and was none of them."""


def _offered(findings: list[Any]) -> list[str]:
    """The kinds that a value may be of, where it is of none; nothing where it may be of one alone."""
    kinds = list(dict.fromkeys(BRANCHES[word] for each in findings if (word := each["loc"][-1]) in BRANCHES))
    return [word for word in kinds if len(kinds) > 1 and not (word == "a whole number" and "a number" in kinds)]


def _rule(kind: str, context: dict[str, Any], message: str) -> tuple[str, str]:
    if kind in ("greater_than", "greater_than_equal"):
        bound = context["gt"] if kind == "greater_than" else context["ge"]
        return (f"is not above {bound}" if kind == "greater_than" else f"is below {bound}"), "give a larger one"
    if kind in ("less_than", "less_than_equal"):
        bound = context["lt"] if kind == "less_than" else context["le"]
        return f"is above {bound}", "give a smaller one"
    if kind == "literal_error":
        return "is not one of the choices", f"use {context['expected'].replace(chr(39), '')}"
    if kind == "value_error":
        reason, _, way_out = str(context["error"]).partition("; ")
        return reason, way_out
    return _RULES.get(kind, f"breaks a rule ({message.lower()})"), _WAYS_OUT.get(kind, "")


def choices(words: Iterable[str]) -> str:
    """A way out that lists the choices."""
    return f"use {either(sorted(words))}"
