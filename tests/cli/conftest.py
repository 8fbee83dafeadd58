"""Commands run in this process, and in one of their own where that is what is tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from memcalc.__main__ import run


@dataclass
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        """Stdout as the one JSON object it is."""
        return json.loads(self.out)


@pytest.fixture
def memcalc(capsys, monkeypatch):
    """Run a command line; its exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "100")

    def call(*words: object) -> Answer:
        capsys.readouterr()
        code = run([str(word) for word in words])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call


def process(*words: object, cwd=None, **environment: str) -> Answer:
    """The same in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "memcalc", *map(str, words)],
        capture_output=True, text=True, cwd=cwd, env={**os.environ, "COLUMNS": "100", **environment}, timeout=60, check=False,
    )  # fmt: skip
    return Answer(done.returncode, done.stdout, done.stderr)
