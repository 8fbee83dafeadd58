"""When a project's code was committed: by which one code of it is told from another."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("commits.txt")
REPOS = {"litgpt": "Lightning-AI/litgpt", "torchtune": "pytorch/torchtune", "torchtitan": "pytorch/torchtitan"}
"""By the implementation's name."""
BESIDE = {"9dec370a": "2024-12-26"}
"""Commits that runs name and that are on no main branch."""
SHORT = 8


def date_of(implementation: str | None, commit: object) -> str | None:
    """The date of a commit; None of one that is not known, or not told.

    >>> date_of("litgpt", "8641822b2b1ef8d9d2a1c5bd7d8d6f3e0fbd8c4e"), date_of("litgpt", None), date_of("timm", "8641822b")
    ('2023-10-16', None, None)
    """
    told = str(commit or "")[:SHORT]
    return BESIDE.get(told) or dates().get(REPOS.get(str(implementation), ""), {}).get(told)


@cache
def dates() -> Mapping[str, Mapping[str, str]]:
    """By repository: by commit, its date."""
    found: dict[str, dict[str, str]] = {}
    repo = ""
    for line in FILE.read_text(encoding="utf-8").splitlines():
        first, *rest = line.split()
        if first == "#":
            repo = rest[0]
        else:
            found.setdefault(repo, {}).update(dict.fromkeys(rest, first))
    return found
