"""The group of commands. Only the one that runs is imported, so that start-up stays short."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command as typer_command

COMMANDS = {
    "estimate": "memcalc.cli.estimate",
    "infer": "memcalc.cli.infer",
    "fit": "memcalc.cli.fit",
    "compare": "memcalc.cli.compare",
    "check": "memcalc.cli.check",
    "sweep": "memcalc.cli.sweep",
    "measure": "memcalc.cli.measure",
    "verify": "memcalc.cli.verify",
    "replay": "memcalc.cli.replay",
    "list": "memcalc.cli.list",
    "textbook": "memcalc.cli.textbook",
    "schema": "memcalc.cli.schema",
    "version": "memcalc.cli.version",
}
"""Each command's module, which holds an ``app`` with that one command."""


class LazyGroup(TyperGroup):
    """A group that knows its commands by name and loads them one at a time."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands, in the order a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name; None for an unknown one, which the parser reports."""
        if cmd_name not in COMMANDS:
            return None
        loaded = typer_command(import_module(COMMANDS[cmd_name]).app)
        loaded.name = cmd_name
        return spared(loaded)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Offer the nearest command for one that does not exist."""
        from memcalc.errors import InputError, did_you_mean

        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            raise InputError("", args[0], "is not a command", did_you_mean(args[0], COMMANDS))
        return super().resolve_command(ctx, args)


def spared(command: Any) -> Any:
    """The command, which reads only the options that are given.

    typer builds a pydantic validator for every option, given or not: 0.6 ms each, some forty times in a command of ours.
    """
    for param in command.params:
        param.process_value = partial(_given, param, param.process_value)
    return command


def _given(param: Any, process: Callable[[Any, Any], Any], ctx: Any, value: Any) -> Any:
    """A parameter's value, as its ``process`` finds it where there is one; what is absent has nothing to be read or refused."""
    if value is not None or param.required:
        return process(ctx, value)
    absent = () if param.multiple or param.nargs == -1 else None
    return absent if param.callback is None else param.callback(ctx, param, absent)


group = typer.Typer(
    cls=LazyGroup,
    help="How many bytes a training step takes, and where each byte goes.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@group.callback()
def _group() -> None:
    """How many bytes a training step takes, and where each byte goes."""


def command() -> Any:
    """The whole command line, ready to run."""
    return spared(typer_command(group))


def single(**settings: Any) -> typer.Typer:
    """An app for one command's module.

    Such a module does not postpone its annotations: typer would read every option's from text again, three times over.
    """
    return typer.Typer(
        add_completion=False, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]}, **settings
    )
