"""A timeline as a file: ``.json`` for scripts, ``.png`` and ``.svg`` for documents, ``.html`` to explore. One function each."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from memcalc.errors import InputError, MissingPackageError

if TYPE_CHECKING:
    from memcalc.footprint import Footprint
    from memcalc.timeline.timeline import Timeline

WRITERS = {".json": "document", ".html": "page", ".png": "picture", ".svg": "picture"}
"""Which module of this package writes each kind of file."""
ASKED = "--timeline"


def kind(path: Path | str) -> str:
    """The kind of file a name asks for, with what that needs installed; ask before a long trace rather than after.

    Raises:
        InputError: a name that ends in none of them.
        MissingPackageError: a picture, without matplotlib.

    >>> kind("step.html")
    '.html'
    """
    suffix = Path(path).suffix.lower()
    if suffix not in WRITERS:
        raise InputError(ASKED, str(path), "is no kind of file a timeline is written as", f"end it in {', '.join(WRITERS)}")
    if WRITERS[suffix] == "picture" and find_spec("matplotlib") is None:
        raise MissingPackageError.extra(f"{ASKED} {suffix}", "matplotlib", "plot")
    return suffix


def write(timeline: Timeline, path: Path | str, footprint: Footprint | None = None, *, title: str = "") -> Path:
    """Write a timeline as the kind of file its name asks for, whole or not at all; the path it was written to.

    Args:
        timeline: what to write.
        path: ends in ``.json``, ``.html``, ``.png`` or ``.svg``.
        footprint: the job, its components and its assumptions, where there is one.
        title: what to call it; the model's name by default.

    Raises:
        InputError: another ending, or the folder or disk refuses; nothing is left behind then.
        MissingPackageError: a picture, without matplotlib.
    """
    from memcalc.measurement_files import write_atomically

    suffix = kind(path)
    module = import_module(f"{__name__}.{WRITERS[suffix]}")
    made: Callable[..., bytes] = module.made
    named = title or (footprint.model.name if footprint is not None else "Memory timeline")
    write_atomically(Path(path), made(timeline, footprint, title=named, suffix=suffix), ASKED)
    return Path(path)
