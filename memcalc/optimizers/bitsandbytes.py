"""bitsandbytes 0.50.2: 8-bit states in blocks of 256, always float32 below a size, whatever the parameter's dtype.

``AdamW8bit(min_8bit_size=4096)`` keeps, for a parameter of n elements:

    n >= 4096:  state1, state2  uint8[n]     absmax1, absmax2  float32[ceil(n / 256)]     and two tables of 256 for all
    n <  4096:  state1, state2  float32[n]

A paged class puts the states (not absmax) of 100 000 elements or more in CUDA managed memory, which no allocator counts;
on the CPU it does not page. The step is a Python number. Options that are not the constructors':

    embeddings_32bit     keep embeddings in 32 bit, as the Trainer of transformers does with optim_bits=8
                         (transformers 5.23.0 trainer.py:1328-1338) and GlobalOptimManager lets anyone do
    block_size           256; 2048 before 0.44.0
    block_wise           true; false was possible until 0.49.2 and keeps two maxima in place of absmax
    percentile_clipping  100; less was possible until 0.49.2 and keeps the last 100 norms
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from memcalc.arrays import Condition, Count, as_count, both, ceil_div, maximum, not_
from memcalc.optimizers.base import Implementation, Options, Param, Place, State, Temporary, optimizer

SOURCE = "bitsandbytes 0.50.2 bitsandbytes/optim/"
PAGED_FROM = 100_000
"""Elements from which a paged class pages (optim/optimizer.py:374-391, get_state_buffer)."""
TABLE = 256
"""Entries of a quantisation table, one for each value of a byte (functional.py:296, create_dynamic_map)."""
OWN: dict[str, Any] = {"embeddings_32bit": False, "block_size": 256, "block_wise": True, "percentile_clipping": 100}


@dataclass(frozen=True)
class Form:
    """One class of the library, by what its constructor hard-codes: bits and paging (None: an option), and its states.

    ``states`` are (name, part, copies of the parameter's size); ``tables`` are those that move to the device.
    """

    states: tuple[tuple[str, str, int], ...]
    bits: int | None = None
    paged: bool | None = None
    own: dict[str, Any] = field(default_factory=lambda: OWN)

    def width(self, o: Options) -> int:
        """Bits of the state before thresholds."""
        return o.optim_bits if self.bits is None else self.bits

    def quantised(self, p: Param, o: Options) -> Condition:
        """Whether this parameter's states are 8 bit (optim/optimizer.py:492-505, init_state)."""
        if self.width(o) != 8 or (o.embeddings_32bit and p.kind == "embedding"):
            return False
        threshold: Count = o.min_8bit_size
        return p.numel >= threshold

    def keep(self, p: Param, o: Options) -> Iterator[State]:
        """States, scales and norms of one parameter, in the order of init_state (optim/optimizer.py:492-537, 664-699)."""
        small = self.quantised(p, o)
        for number, (name, part, copies) in enumerate(self.states, 1):
            for dtype, fits in (("uint8", small), ("float32", not_(small))):
                for place, lies in self.places(p, o):
                    yield State(name, part, dtype, p.numel * copies, as_count(both(fits, lies)), place)
            if self.width(o) == 8 and o.get("block_wise", True):
                blocks = ceil_div(p.numel, o.get("block_size", TABLE)) * copies
                yield State(f"absmax{number}", "scales", "float32", blocks, as_count(small))
            elif self.width(o) == 8:
                for name_of_scale in (f"max{number}", f"new_max{number}"):
                    yield State(name_of_scale, "scales", "float32", 1, as_count(small))
        if o.get("percentile_clipping", 100) < 100:
            yield State("gnorm_vec", "norms", "float32", 100)
        if o.get("max_unorm", 0.0) > 0:
            yield State("unorm_vec", "norms", "float32", 1)

    def places(self, p: Param, o: Options) -> Iterator[tuple[Place, Condition]]:
        """Where the states lie: managed memory from a size on, if the class pages."""
        pages = bool(o.is_paged) if self.paged is None else self.paged
        far = p.numel >= PAGED_FROM
        yield "device", not_(both(far, pages))
        if pages:
            yield "managed", far

    def tables(self, params: Sequence[Param], o: Options) -> Iterator[State]:
        """Both tables are made on the host with an 8-bit optimizer and move when the first 8-bit state needs them."""
        if self.width(o) != 8:
            return
        needed: Count = 0
        for p in params:
            needed = maximum(needed, as_count(both(self.quantised(p, o), p.count > 0)))
        for name, moves in (("dynamic", True), ("udynamic", len(self.states) > 1)):
            moved = needed if moves else 0
            yield State(name, "table", "float32", TABLE, moved)
            yield State(name, "table", "float32", TABLE, 1 - moved, "host")

    def need(self, p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
        """A norm over a float32 copy of the parameter before a 32-bit update with max_unorm (functional.py:1142-1144)."""
        if o.get("max_unorm", 0.0) > 0 and p.dtype != "float32":
            yield Temporary("param_norm", p.numel * 4, "max", as_count(not_(self.quantised(p, o))))


def register(name: str, form: Form, where: str, options: dict[str, Any], **fields: Any) -> None:
    """Add one class under its own name."""
    bits = {None: "32-bit states, or 8-bit ones with optim_bits=8", 8: "8-bit states", 32: "float32 states"}[form.bits]
    paged = ", in managed memory from 100 000 elements" if form.paged else ""
    optimizer(
        f"bitsandbytes:{name}",
        cls=f"bitsandbytes.optim.{name}",
        summary=f"{len(form.states)} × {bits}{paged}" if len(form.states) > 1 else bits + paged,
        source=f"{SOURCE}{where}.py, optimizer.py:374-699",
        options={**options, **form.own},
        own=frozenset(form.own),
        temporaries=form.need,
        shared=form.tables,
        **fields,
    )(form.keep)


def refuse(*rules: tuple[str, Callable[[Any], bool], str]) -> Callable[[Options], list[tuple[str, str]]]:
    """The constructor's refusals: option, when, and in what words."""

    def refused(o: Options) -> list[tuple[str, str]]:
        widths = [("optim_bits", "is not 8 or 32")] if o.get("optim_bits", 32) not in (8, 32) else []
        return widths + [(key, rule) for key, when, rule in rules if when(o[key])]

    return refused


from memcalc.optimizers import _bitsandbytes_more  # noqa: E402, F401  the classes, registered as this file is read
