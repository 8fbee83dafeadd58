"""The compiled loop, held against the bare one in Python to the byte."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.allocator import summits as bare
from memcalc.allocator.program import NotPlainError, Numbered, program_of
from memcalc.allocator.summits import lives_in, summits
from memcalc.tape.events import Alloc, Buffer, Free, Mark, Repeat
from tests.allocator.test_summits import MIB, bodies, tapes

compiled = pytest.importorskip("memcalc.allocator.compiled", reason="needs numba (memcalc[fast])")


def in_python(tape, capacity=None, descending=False):
    """The phases' highest points by the bare loop; None where memory runs out."""
    try:
        return bare._Run(capacity, descending).play(Numbered.of(tape))
    except bare._OutOfMemoryError:
        return None


def by_numba(tape, capacity=None, descending=False):
    """The same by the compiled loop."""
    ended, tops = compiled.play(Numbered.of(tape), capacity, descending=descending)
    assert ended in (compiled.PLAYED, compiled.OUT_OF_MEMORY)
    return tops if ended == compiled.PLAYED else None


@settings(max_examples=50, deadline=None)
@given(tapes(), st.integers(0, 100), st.booleans())
def test_it_plays_what_the_bare_loop_plays(tape, share, descending):
    """Of any program each phase is the same to the byte, with all the memory it likes and with less, addresses either way."""
    played = in_python(tape)
    assert by_numba(tape) == played
    wanted = max(top for *_, top in played)
    for capacity in (wanted * share // 100, wanted - 1, wanted):
        if capacity >= 0:
            assert by_numba(tape, capacity, descending) == in_python(tape, capacity, descending)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(bodies(), st.integers(2, 400)), min_size=1, max_size=6))
def test_it_makes_room_for_as_many_pieces_as_there_are(parts):
    """A run that needs more rows than there are begins anew with more of them: turns that leave thousands of blocks alive."""
    tape = [Mark("forward"), *(Repeat(times, body) for body, times in parts)]
    numbered = Numbered.of(tape)
    numbered.program.compiled = compiled._arrays(numbered.program)
    numbered.program.compiled.rows = 2
    assert compiled.play(numbered, None, descending=False) == (compiled.PLAYED, in_python(tape))


def test_what_it_does_not_know_goes_to_the_full_replay(monkeypatch):
    """A death of an equal buffer that is not the one that was born is no error, and is answered as without numba."""
    tape = [Mark("forward"), Alloc(Buffer("b", 3 * MIB, "temporary")), Free(Buffer("b", 3 * MIB, "temporary"))]
    assert compiled.play(Numbered.of(tape), None, descending=False)[0] == compiled.NOT_PLAIN
    without = summits(tape)
    monkeypatch.setattr(bare._Compiled, "module", compiled)
    assert summits(tape) == without
    assert lives_in(tape, 20 * MIB)
    assert not lives_in(tape, 20 * MIB - 1)


def test_numbers_beyond_int64_stay_in_python(monkeypatch):
    """Segments that come to 2**63 bytes and more, and a memory of as many, are reckoned with in Python's integers."""
    tape = [Mark("forward"), *(Alloc(Buffer(f"b{number}", 2**62, "activation")) for number in range(4))]
    assert compiled.play(Numbered.of(tape), None, descending=False) is None
    assert compiled.play(Numbered.of(tape[:1]), 2**63, descending=False) is None
    monkeypatch.setattr(bare._Compiled, "module", compiled)
    assert summits(tape)[2, "forward"]["reserved"] == 2**64


def test_a_process_that_plays_much_has_it_compiled(monkeypatch):
    """The first tapes of a process are played in Python, and those after them by numba; the answers are the same."""
    monkeypatch.setattr(bare, "PATIENCE", 3)
    monkeypatch.setattr(bare._Compiled, "played", 0)
    monkeypatch.setattr(bare._Compiled, "tried", False)
    monkeypatch.setattr(bare._Compiled, "module", None)
    tape = [Mark("forward"), Alloc(Buffer("weight", 3 * MIB, "parameter"))]
    answers = []
    for number in range(5):
        answers.append(summits(tape))
        assert bare._Compiled.module is (compiled if number >= 3 else None)
    assert answers == [{(2, "forward"): {"requested": 3 * MIB, "allocated": 3 * MIB, "reserved": 20 * MIB}}] * 5


def test_without_numba_all_stays_as_it_is(monkeypatch):
    """Where numba is not installed, a process that plays much goes on in Python, and asks for it once."""
    monkeypatch.setattr(bare, "PATIENCE", 0)
    monkeypatch.setattr(bare._Compiled, "played", 0)
    monkeypatch.setattr(bare._Compiled, "tried", False)
    monkeypatch.setattr(bare._Compiled, "module", None)
    monkeypatch.delitem(sys.modules, "memcalc.allocator.compiled", raising=False)
    monkeypatch.delattr("memcalc.allocator.compiled", raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)
    tape = [Mark("forward"), Alloc(Buffer("weight", 3 * MIB, "parameter"))]
    assert [summits(tape)[2, "forward"]["reserved"] for _ in range(2)] == [20 * MIB] * 2
    assert bare._Compiled.module is None


def test_a_program_is_written_once_for_all_sizes():
    """What happens is the same whatever the sizes: equal formulas are one size, and numbers are put in for them."""
    first, second, third = (Buffer(name, "twice", "activation") for name in "abc")
    program = program_of([Mark("forward"), Alloc(first), Repeat("turns", (Alloc(second), Alloc(third), Free(third)))])
    assert (program.sizes, program.needs) == (["twice"], [0, 0, 0])
    numbers = {"twice": 2 * MIB, "turns": 5, 1: 1}
    numbered = Numbered(program, numbers.__getitem__, list)
    assert in_python(numbered) == [[14 * MIB] * 2 + [20 * MIB]]
    with pytest.raises(NotPlainError):
        Numbered(program, lambda size: -1, list)


def test_what_numba_must_not_compile_stays_in_python(monkeypatch):
    """Where numba is told not to compile, the loop in arrays would be slower than the one it stands in for: it is not taken."""
    monkeypatch.setattr(compiled.numba.config, "DISABLE_JIT", True)
    with pytest.raises(RuntimeError, match="NUMBA_DISABLE_JIT"):
        compiled.ready()


def test_repetitions_within_whose_count_is_no_number_are_no_program():
    """A formula for the turns of a body inside a body: the bare loops leave the tape to the full replay."""
    with pytest.raises(NotPlainError):
        program_of([Repeat(2, (Repeat(np.array([1, 2]), (Alloc(Buffer("b", 3, "activation")), Mark("forward"))),))])
