"""Numbers that remember how they were made, held against the same arithmetic on plain numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from memcalc.arrays import SplitError, as_count, both, ceil_div, maximum, minimum, not_, round_up, where
from memcalc.kernels.reduction import Chip, contiguous
from memcalc.play.decisions import Decisions
from memcalc.recording import Recording
from memcalc.symbols import NotParametricError, int_of

CHIP = Chip(132, 2048)

WAYS = {
    "sum": lambda a, b: a + b,
    "difference": lambda a, b: 3 * a - b,
    "product": lambda a, b: a * b,
    "quotient": lambda a, b: (a + b) // 7,
    "rest": lambda a, b: a % 5 + b,
    "by the other": lambda a, b: a // (b % 9 + 1),
    "blocks": lambda a, b: round_up(a * 3 + b, 512),
    "blocks of what is whole": lambda a, b: round_up(1024 * a, 512),
    "negative quotient": lambda a, b: -(-(a * 8 - b) // 16),
    "larger": lambda a, b: maximum(a, b + 10),
    "smaller": lambda a, b: minimum(a * 2, b),
    "choice": lambda a, b: where(a > b, a - b, 3),
    "questions": lambda a, b: where(both(a > 10, not_(b == 4)), a, b),
    "count": lambda a, b: as_count(a >= 100) * b,
    "branch": lambda a, b: a + 1 if Decisions().decide(a * 2 > b) else b,
    "each": lambda a, b: Decisions().each(lambda one: one.bit_length(), a % 1000 + 1),
    "staging": lambda a, b: contiguous((a % 900 + 1, b % 9000 + 4096), (0,), 4, CHIP)[0],
    "nothing": lambda a, b: a - a + 0 * b,
}


def worked_out(steps, first, second):
    """A list of numbers, each made of two before it."""
    made = [first, second]
    for name, one, other in steps:
        made.append(WAYS[name](made[one % len(made)], made[other % len(made)]))
    return made


programs = st.lists(st.tuples(st.sampled_from(sorted(WAYS)), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8)
sizes = st.tuples(st.integers(2, 300), st.integers(2, 300))


@settings(max_examples=150, deadline=None)
@given(programs, sizes, st.lists(sizes, min_size=1, max_size=5))
def test_formulas_are_what_plain_numbers_give(program, played, others):
    """Where a recording holds for other numbers, each formula is what the same program makes of them, in arrays too."""
    plain = worked_out(program, *played)
    assume(all(abs(int(one)) < 2**40 for pair in [played, *others] for one in worked_out(program, *pair)))
    recording = Recording()
    made = worked_out(program, recording.input("a", played[0]), recording.input("b", played[1]))
    assert [int_of(one) for one in made] == plain
    held = []
    for pair in [played, *others]:
        reading = recording.read(dict(zip("ab", pair, strict=True)))
        if reading is not None:
            assert [reading.value(one) for one in made] == worked_out(program, *pair)
            held.append(pair)
    assert played in held
    columns = np.array(held, dtype=np.int64).T
    reading = recording.read({"a": columns[0], "b": columns[1]})
    assert reading is not None
    for one, expected in zip(made, zip(*(worked_out(program, *pair) for pair in held), strict=True), strict=True):
        assert np.broadcast_to(reading.value(one), len(held)).tolist() == list(expected)


def test_a_question_tells_jobs_apart():
    """Of jobs held together, those that answer a question otherwise are told from the others, or are all of another kind."""
    recording = Recording()
    rows = recording.input("rows", 10)
    assert rows > 5
    with pytest.raises(SplitError) as split:
        recording.read({"rows": np.array([9, 3, 6])})
    assert split.value.condition.tolist() == [True, False, True]
    assert recording.read({"rows": np.array([2, 3])}) is None
    assert recording.read({"rows": np.array([6, 7])}).value(rows * 2).tolist() == [12, 14]


def test_what_is_known_is_not_asked():
    """Sizes are above one, and what adds up or is rounded up from them is at least as much: no other number could answer no."""
    recording = Recording()
    rows, tokens = recording.input("rows", 4), recording.input("tokens", 7)
    assert rows > 1
    assert rows * tokens + 3 >= 7
    assert ceil_div(rows * tokens, 4) > 0
    assert not maximum(rows, 3) < 3
    assert minimum(rows, tokens) != 0
    assert rows - rows == 0
    assert not recording.asked
    assert rows < tokens
    assert len(recording.asked) == 1


@pytest.mark.parametrize(
    "use", [int, str, range, list, len, float, "{}".format, lambda size: size / 2, lambda size: 0.5 * size]
)
def test_a_number_cannot_be_taken_out(use):
    """What would hold for the number that is played with alone is an error, never a formula that is wrong elsewhere."""
    size = Recording().input("rows", 4)
    with pytest.raises((NotParametricError, TypeError)):
        use(size)


def test_an_extent_of_one_is_no_formula():
    """A dimension of one is another structure: PyTorch leaves out what it would do along it."""
    with pytest.raises(NotParametricError, match="rows is 1"):
        Recording().input("rows", 1)
