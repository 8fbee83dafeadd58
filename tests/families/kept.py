"""The cases of every family, each file of them read once in a process."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "cases"
STEMS = sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def cases_of(stem: str) -> list[dict[str, Any]]:
    """Architectures and configs; none of a family without a file."""
    loaded: list[dict[str, Any]] = yaml.safe_load((FOLDER / f"{stem}.yaml").read_text()) if stem in STEMS else []
    return loaded
