"""Where the YAML files that ship with memcalc lie: one file for each model, device or sweep, found by its name.

A wheel carries them in ``memcalc/_configs``; a source checkout keeps them in ``configs`` beside the package.
"""

from __future__ import annotations

from pathlib import Path

from memcalc.errors import InputError, did_you_mean

SUFFIX = ".yaml"


def shipped(kind: str) -> dict[str, Path]:
    """Every shipped file of a kind (``models``, ``devices``, …): name -> path, sorted by name. No file is opened.

    A kind that nothing ships is empty.

    >>> shipped("models")["gpt2"].name
    'gpt2.yaml'
    """
    folder = _folder() / kind
    return {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.stem)}


def find_shipped(kind: str, name: str, path: str = "") -> Path:
    """The file of that name, upper and lower case alike, and with or without the organisation of a Hub name.

    Args:
        kind: ``models``, ``devices``, …
        name: as ``gpt2``, ``Llama-3.1-8B`` or ``meta-llama/Llama-3.1-8B``.
        path: what the error calls the value.

    Raises:
        InputError: nothing of that name ships.
    """
    known = shipped(kind)
    stem = name.rsplit("/", 1)[-1].lower()
    if stem not in known:
        raise InputError(path or kind, name, f"is not one of the shipped {kind}", did_you_mean(stem, known))
    return known[stem]


def _folder() -> Path:
    here = Path(__file__).resolve().parent
    installed = here / "_configs"
    return installed if installed.is_dir() else here.parent / "configs"
