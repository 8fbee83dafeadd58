"""Where answers go: streams whose readers may leave, that may be full, closed, or of an encoding without what is drawn."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from memcalc.errors import NO_VALUE, InputError


class ReaderGoneError(Exception):
    """Nobody reads what is still to come, and nothing but that was asked for."""


class Answers:
    """Stdout. Once its reader has gone (``head``, ``less``) what follows is dropped: an exit code is still to be found.

    Args:
        stream: the real one.
        endless: whether to end there and then, as a sweep of a million rows does.
    """

    def __init__(self, stream: Any, *, endless: bool) -> None:
        self._stream, self._endless = stream, endless

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As a stream's."""
        self._tried(lambda: self._stream.write(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """As a stream's."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """As a stream's."""
        self._tried(self._stream.flush)

    def _tried(self, act: Callable[[], Any]) -> None:
        """Write, or see why not.

        Raises:
            ReaderGoneError: the reader has gone, and the rest would be endless.
            InputError: a full disk, or another that the system refuses to write to.
        """
        try:
            act()
        except BrokenPipeError:
            self._drop()
            if self._endless:
                raise ReaderGoneError from None
        except OSError as error:
            self._drop()
            way_out = "make room, or send it elsewhere"
            raise InputError("stdout", NO_VALUE, f"cannot be written ({error.strerror})", way_out) from None

    def _drop(self) -> None:
        """What is still held goes nowhere, also when the interpreter flushes it at its end."""
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


class Remarks(Answers):
    """Stderr. What cannot be written there is dropped: the exit code says that there was something.

    Args:
        stream: the real one.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream, endless=False)

    def _tried(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except (OSError, ValueError):
            self._drop()


@contextlib.contextmanager
def answering(*, endless: bool) -> Iterator[None]:
    """Both streams as a command may use them, and as they were afterwards."""
    before = sys.stdout, sys.stderr
    opened = [Path(os.devnull).open("w", encoding="utf-8") for stream in before if stream is None]  # noqa: SIM115 - closed below
    nowhere = iter(opened)
    out, err = (next(nowhere) if stream is None else stream for stream in before)
    if not str(getattr(out, "encoding", None) or "utf-8").lower().startswith("utf") and hasattr(out, "reconfigure"):
        out.reconfigure(errors="replace")  # lines and dots are drawn; without them a table is plainer, not a fault
    sys.stdout, sys.stderr = Answers(out, endless=endless), Remarks(err)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in opened:
            stream.close()
