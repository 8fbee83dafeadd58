"""The terminal's tables of a timeline."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from memcalc.errors import InputError
from memcalc.formats.timeline.tables import by_table, top_table
from memcalc.tape.events import Alloc, Buffer
from memcalc.timeline.timeline import Timeline


def shown(drawn, width=80):
    out = io.StringIO()
    Console(file=out, width=width, no_color=True, force_terminal=False).print(drawn)
    return out.getvalue().splitlines()


def test_tables_fit_eighty_columns_and_lose_nothing(step):
    """No line is longer than 80, and no word of a name is cut off."""
    for drawn in (top_table(step, 12), *(by_table(step, how) for how in ("module", "operator", "role"))):
        lines = shown(drawn)
        assert max(map(len, lines)) <= 80
        assert "…" not in "".join(lines)


@pytest.mark.parametrize("how", ["module", "operator", "role"])
@pytest.mark.parametrize("most", [3, 50])
def test_shares_and_bytes_add_up_to_the_peak(step, how, most):
    """The rows of a table, the one of what is not listed included, sum to its last row, which is the peak and 100 %."""
    rows = [
        re.findall(r"([\d,]+) +([\d.]+) % +([\d,]+)\s*$", line) for line in shown(by_table(step, how, exact=True, most=most))
    ]
    numbers = [[float(value.replace(",", "")) for value in row[0]] for row in rows if row]
    *parts, whole = numbers
    assert [sum(column) for column in zip(*parts, strict=True)] == pytest.approx(whole)
    assert whole[:2] == [step.peak.bytes, 100.0]


def test_the_largest_and_the_rest_are_the_peak(step):
    """The listed buffers and the line of the others sum to the line of all."""
    lines = shown(top_table(step, 5, exact=True))
    sizes = [int(match[1].replace(",", "")) for line in lines if (match := re.match(r" *([\d,]+) ", line))]
    assert len(sizes) == 7
    assert sum(sizes[:-1]) == sizes[-1] == step.peak.bytes


def test_a_row_tells_what_a_buffer_is():
    """Name, shape, dtype, role, module, operator and the phase of its birth are all there, brackets and all."""
    one = Buffer("x[bold]", 4 * 2**20, "activation", module="net.fc", operator="aten.mm.default", dtype="float32", shape=(2, 3))
    text = " ".join(" ".join(shown(top_table(Timeline.of([Alloc(one)]), 3))).split())
    assert text.endswith("4.00 activations x[bold] 2×3 float32 init net.fc · aten.mm.default 4.00 all 1")


def test_another_way_to_group(step):
    """What is neither module, operator nor role is refused by name."""
    with pytest.raises(InputError, match="--by: layer is not a way to group; use module, operator or role"):
        by_table(step, "layer")


def test_another_instant(step):
    """A table may be of any instant, and says which."""
    assert "at instant 3: init, rounded" in shown(by_table(step, "role", 3))[0]
