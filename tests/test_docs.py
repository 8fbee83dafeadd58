"""What is written about memcalc is what memcalc does."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import memcalc

ROOT = Path(__file__).parent.parent
MODULES = [m.name for m in pkgutil.walk_packages(memcalc.__path__, "memcalc.") if not m.name.startswith("memcalc.runtime")]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    """Every module can be imported, and every example in a docstring of it gives what it says."""
    if name.endswith("__main__"):
        return
    module = importlib.import_module(name)
    if ">>>" in Path(module.__file__).read_text():  # to look for examples through every object takes longer than most of them
        assert doctest.testmod(module).failed == 0


def test_the_command_reference_is_fresh():
    """docs/commands.md is what the commands say of themselves."""
    done = subprocess.run([sys.executable, ROOT / "docs/generate.py", "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_command_is_in_the_readme():
    """A newcomer finds each command in the README."""
    from memcalc.cli.app import COMMANDS

    text = (ROOT / "README.md").read_text()
    assert [name for name in COMMANDS if f"memcalc {name}" not in text] == []


def test_the_readme_has_the_two_commands_that_ci_runs():
    """The main job and the tests are each one block under a marker."""
    text = (ROOT / "README.md").read_text()
    for marker in ("main", "test"):
        assert re.search(rf"<!-- ci: {marker} -->\n```sh\n.+\n```", text)


def test_public_names_import_lazily():
    """``import memcalc`` imports nothing of itself, and every public name is there when asked for."""
    code = (
        "import sys, memcalc; print([m for m in sys.modules if m.startswith('memcalc.')]); "
        "[getattr(memcalc, n) for n in memcalc.__all__]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
