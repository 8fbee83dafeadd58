"""What the argument parser refuses, said the way memcalc says errors: one line with path, value, rule and way out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from memcalc.errors import NO_VALUE, InputError, did_you_mean, either

RULES = (
    ("parse string as an integer", "is not a whole number", "give one"), ("valid integer", "is not a whole number", "give one"),
    ("parse string as a number", "is not a number", "give one"), ("valid float", "is not a number", "give one"),
    ("greater than or equal to", "is too small", ""),
)  # fmt: skip
"""What the parser's words hold, and the same in memcalc's; the last number it names is the way out of a bound."""


def usage_error(error: Any, arguments: Sequence[str]) -> InputError:
    """The error of a command line that could not be read.

    Args:
        error: one of typer's usage errors.
        arguments: the words of the command line, where the refused value stands.
    """
    named = next((f"memcalc {word}" for word in arguments[:1] if not word.startswith("-")), "memcalc")
    command = error.ctx.command_path if error.ctx is not None else named
    see, kind = f"see {command} --help", type(error).__name__
    option = str(getattr(error, "option_name", ""))
    if kind == "NoSuchOption":
        known = [name for param in error.ctx.command.params for name in param.opts if name.startswith("--")]
        near = did_you_mean(option, known)
        return InputError("", option, f"is not an option of {command}", near if near.startswith("did") else see)
    if kind == "BadOptionUsage":
        rule = "takes no value" if "does not take" in error.format_message() else "needs a value"
        return InputError("", option, rule, see)
    param = getattr(error, "param", None)
    if param is None:
        return InputError("", NO_VALUE, _sentence(error.format_message()), see)
    name = next((word for word in param.opts if word.startswith("--")), param.metavar or param.name)
    if kind == "MissingParameter":
        return InputError(name, NO_VALUE, "is missing", see)
    rule, way_out = _rule(str(error.message))
    return InputError(name, _value(param.opts, arguments), rule, way_out or see)


def _rule(message: str) -> tuple[str, str]:
    """(rule, way out) from the parser's words."""
    _, one_of, choices = message.partition("is not one of ")
    if one_of and (found := re.findall(r"'([^']*)'", choices)):
        return "is not one of the choices", f"use {either(found)}"
    for words, rule, way_out in RULES:
        if words in message:
            return rule, way_out or f"give {message.rstrip('.').rpartition(' ')[2]} or more"
    return _sentence(message), ""


def _value(names: Sequence[str], arguments: Sequence[str]) -> object:
    """What stands behind an option, the last time that it is given."""
    found: object = NO_VALUE
    for place, word in enumerate(arguments):
        option, equals, value = word.partition("=")
        if option in names and (equals or place + 1 < len(arguments)):
            found = value if equals else arguments[place + 1]
    return found


def _sentence(message: str) -> str:
    """One line that can stand behind a path."""
    text = " ".join(message.split()).rstrip(".")
    return text[:1].lower() + text[1:]
