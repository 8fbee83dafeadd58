"""Names lead to entries: short ones, full ones, wrong ones, and one file imported for each."""

from __future__ import annotations

import subprocess
import sys

import pytest

from memcalc.errors import InputError
from memcalc.optimizers.names import SHORT_NAMES, all_optimizers, find_optimizer, library_module, library_modules, library_of


@pytest.mark.parametrize("short", sorted(SHORT_NAMES))
def test_every_short_name_leads_to_its_entry(short):
    """No short name points at an entry that does not exist, and case does not matter."""
    assert find_optimizer(short).name == SHORT_NAMES[short]
    assert find_optimizer(short.upper()).name == SHORT_NAMES[short]


def test_every_entry_lives_in_the_file_its_name_says():
    """A full name alone is enough to know which file to import."""
    for name, entry in all_optimizers().items():
        assert entry.name == name
        assert library_of(name) in library_modules(), name
        states = getattr(entry.states, "func", entry.states)  # some are a partial of their library's one function
        file = states.__module__.rpartition(".")[2]
        assert file == library_of(name) or file.startswith("_"), f"{name} is defined in {file}"


def test_every_file_holds_entries_of_its_own_library():
    """No library file is empty, and none registers under another library's prefix."""
    held = {library_of(name) for name in all_optimizers()}
    assert held == set(library_modules())


def test_every_entry_says_where_it_was_read():
    """Each entry names its project, a version or commit and a file, and says what it keeps."""
    for name, entry in all_optimizers().items():
        assert any(character.isdigit() for character in entry.source), f"{name}: {entry.source!r} names no version"
        assert ".py" in entry.source or ".c" in entry.source, f"{name}: {entry.source!r} names no file"
        assert entry.summary, name


def test_a_library_module_is_its_name_with_underscores():
    """The file of a PyPI name follows from the name."""
    assert library_module("torch:AdamW") == "memcalc.optimizers.torch"
    assert library_module("adam-mini:Adam_mini") == "memcalc.optimizers.adam_mini"


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("admw", "adamw"),
        ("torch:AdamWW", "torch:AdamW"),
        ("SGDScheduleFree", "schedulefree:SGDScheduleFree"),
        ("came-pytorch:CAMEE", "came-pytorch:CAME"),
        ("nowhere:Lion", "lion-pytorch:Lion"),
    ],
)
def test_an_unknown_name_is_answered_with_what_was_meant(wrong, meant):
    """A typo in a short name, a class without its library and a wrong library all get the right suggestion."""
    with pytest.raises(InputError) as caught:
        find_optimizer(wrong, "training.optimizer")
    assert str(caught.value).startswith(f"training.optimizer: {wrong} is not a known optimizer; did you mean ")
    assert meant in caught.value.way_out


@pytest.mark.parametrize("hostile", ["base:Optimizer", "names:x", "_parts:x", "os:system", "..:x", "a/b:c", "", ":", "torch:"])
def test_a_name_that_is_no_library_imports_nothing_and_is_refused(hostile):
    """Words that are not a library's file name never reach the import system."""
    with pytest.raises(InputError):
        find_optimizer(hostile)


def test_one_name_imports_one_library_file():
    """Finding one optimizer leaves every other library's file, numpy and torch unimported."""
    program = (
        "import sys; from memcalc.optimizers.names import find_optimizer; find_optimizer('lion');"
        "print(*sorted(m.rpartition('.')[2] for m in sys.modules if m.startswith('memcalc.optimizers.')));"
        "print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.splitlines()
    names = answer[0].split()
    assert "lion_pytorch" in names
    assert not {"torch", "timm", "pytorch_optimizer", "bitsandbytes"} & set(names)
    assert answer[1] == "[]"
