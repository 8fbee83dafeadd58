"""What the shipped models' YAML says, kept as JSON beside it: importing PyYAML alone is a sixth of a cold command.

A file that is not, byte for byte, as it was when its copy was made is read as YAML, so that a stale copy costs time and nothing
else. ``python docs/generate.py`` writes the copies.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any
from zlib import crc32

COPIES = Path(__file__).with_name("parsed.json")


@lru_cache(maxsize=1)
def _copies() -> str:
    try:
        return COPIES.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _copy(name: str) -> Any:
    """One model's copy, which has a line of its own; None for none."""
    _, found, rest = _copies().partition(f"\n{json.dumps(name)}: ")
    try:
        return json.loads(rest.partition("\n")[0].removesuffix(",")) if found else None
    except ValueError:
        return None


def parsed(file: Path) -> dict[str, Any] | None:
    """The mapping that a shipped file holds, the caller's own; None where there is no copy of the file as it is.

    >>> from memcalc.catalog import shipped
    >>> parsed(shipped("models")["gpt2"])["model_type"]
    'gpt2'
    >>> parsed(Path("elsewhere/gpt2.yaml")) is None
    True
    """
    copy = _copy(file.stem)
    if copy is None:
        return None
    try:
        data = file.read_bytes()
    except OSError:
        return None
    size, checksum, mapping = copy
    found: dict[str, Any] = mapping
    return found if (len(data), crc32(data)) == (size, checksum) else None


def copies() -> str:
    """The copies of all that is shipped, as the file has them; a file whose YAML JSON cannot say has none."""
    from memcalc.catalog import shipped
    from memcalc.readers.yaml import load_yaml

    found = {}
    for name, file in shipped("models").items():
        data, written = file.read_bytes(), load_yaml(file)
        if isinstance(written, dict) and json.loads(json.dumps(written)) == written:
            found[name] = [len(data), crc32(data), written]
    lines = (f"{json.dumps(name)}: {json.dumps(copy, separators=(',', ':'))}" for name, copy in found.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"
