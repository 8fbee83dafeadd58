"""Numbers from text, text from numbers, and the sentence every error speaks."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcalc.errors import InputError, MissingPackageError, did_you_mean
from memcalc.registry import Registry
from memcalc.units import MAX_BYTES, checked_bytes, format_gib, parse_bytes, parse_count, parse_fraction


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 * 2**30),
        ("80 GB", 80 * 10**9),
        ("1.5TiB", 3 * 2**39),
        ("512", 512),
        (4096, 4096),
        ("1e9B", 10**9),
        ("7mib", 7 * 2**20),
    ],
)
def test_sizes_are_read_exactly(text, size):
    """GiB is 2**30 and GB is 10**9, and neither is ever taken for the other."""
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1GiB", "0", "nan", "inf", "1e400", "12 parsecs", "0.3B", "1e30TiB", True, None, [1]]
)
def test_sizes_that_make_no_sense_are_refused(text):
    """Signs, NaN, infinities, unknown units, fractions of a byte and absurd sizes are errors that name the path."""
    with pytest.raises(InputError, match=r"^memory: "):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "count"), [("7e9", 7 * 10**9), ("7B", 7 * 10**9), ("125M", 125 * 10**6), ("1_000", 1000), (12, 12)]
)
def test_counts_are_read_exactly(text, count):
    """A bare model size may be written the ways people write it."""
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["7Q", "seven", "-7B", "0", "1.5", "9e18B"])
def test_counts_that_make_no_sense_are_refused(text):
    """A count is a whole number above zero with a known unit."""
    with pytest.raises(InputError, match=r"^params: "):
        parse_count(text)


@pytest.mark.parametrize("text", ["100%", "1", "-1%", "nan", "x", ""])
def test_shares_lie_between_zero_and_one(text):
    """A headroom of everything, less than nothing, or no number is refused."""
    with pytest.raises(InputError, match=r"^headroom: "):
        parse_fraction(text, "headroom")


@given(st.integers(1, MAX_BYTES))
def test_whole_numbers_survive(size):
    """Any whole number of bytes below 2**63 is read back as itself."""
    assert parse_bytes(str(size)) == size
    assert checked_bytes(size, "x") == size


def test_totals_of_two_to_the_63_are_refused():
    """No total is stated that an int64 could not hold."""
    with pytest.raises(InputError, match=r"2\*\*63"):
        checked_bytes(2**63, "states")


def test_gib_is_never_gb():
    """80 GB of marketing is printed as the GiB it is."""
    assert format_gib(80 * 10**9) == "74.51 GiB"


def test_an_error_is_one_line_and_survives_a_process_boundary():
    """Errors cross to worker processes and back with their sentence whole, and long or multi-line values are cut."""
    error = InputError("a.b", "x\n" * 200, "is too much", "say less")
    assert "\n" not in str(error)
    assert len(str(error)) < 130
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.exit_code) == (str(error), 2)


def test_a_missing_package_names_the_extra():
    """The way out of a missing package can be pasted into a shell."""
    assert "pip install 'memcalc[torch]'" in str(MissingPackageError.extra("model", "torch", "torch"))


def test_near_words_come_first():
    """A misspelt name is answered with its neighbours."""
    assert did_you_mean("lama", ["llama", "gpt2"]) == "did you mean llama?"


def test_a_name_is_registered_once():
    """A second entry under one name is a fault of the program, found at import."""
    registry = Registry[int]("thing")
    registry.add("a", 1)
    with pytest.raises(ValueError, match="twice"):
        registry.add("a", 2)
