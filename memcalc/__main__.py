"""The program: one command in, one exit code out.

0 yes · 1 no · 2 could not be judged · 70 a fault of memcalc itself · 130 interrupted.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable
from typing import Any

from memcalc.collecting import seldom
from memcalc.errors import EXIT_FAULT, MemcalcError

EXIT_INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with the documented exit code."""
    seldom()
    code = run(sys.argv[1:] if arguments is None else arguments)
    gc.freeze()
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; every error is one line on stderr."""
    command = _load()
    from memcalc.cli.streams import answering

    with answering(endless=arguments[:1] == ["sweep"]):
        return _run(command, arguments)


def _run(command: Callable[[], Any], arguments: list[str]) -> int:
    from typer import Abort

    from memcalc.cli.streams import ReaderGoneError

    try:
        code = command().main(arguments, prog_name="memcalc", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except MemcalcError as error:
        return _said(f"memcalc: {error}", error.exit_code)
    except (KeyboardInterrupt, Abort):
        return _said("memcalc: interrupted", EXIT_INTERRUPTED)
    except ReaderGoneError:
        return 0
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            return _misused(error, arguments)
        if os.environ.get("MEMCALC_DEBUG"):
            raise
        fault = f"{type(error).__name__}: {error}".replace("\n", " ")
        return _said(
            f"memcalc: a fault of memcalc itself ({fault}); please report it with the command and MEMCALC_DEBUG=1's output",
            EXIT_FAULT,
        )


def _misused(error: Any, arguments: list[str]) -> int:
    """What the argument parser refuses; a bare ``memcalc`` shows its help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return int(error.exit_code)
    from memcalc.cli.usage import usage_error

    return _said(f"memcalc: {usage_error(error, arguments)}", int(error.exit_code))


def _load() -> Callable[[], Any]:
    """What makes the command."""
    # pydantic would search every installed distribution for plugins, which no command needs and every start would pay for
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from memcalc.cli.app import command

    return command


def _said(line: str, code: int) -> int:
    with contextlib.suppress(MemcalcError, OSError):  # what could not be written is said already, or comes second
        sys.stdout.flush()
    print(line, file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
