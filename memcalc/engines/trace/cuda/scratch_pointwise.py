"""Element by element, in more than one step."""

from __future__ import annotations

from typing import Any

from memcalc.engines.trace.cuda.scratch import Arguments, Scratch, nbytes, scratch
from memcalc.kernels.behaviour import Behaviour


@scratch("isinf", source="native/TensorCompare.cpp:isinf: self.abs() == infinity; of complex numbers, either part")
def _isinf(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    source = args["self"]
    if source.is_complex():  # the second part's, beside the first one's answer
        return [Scratch("abs", nbytes(source) // 2), Scratch("isinf of the imaginary part", source.numel())]
    return [Scratch("abs", nbytes(source))] if source.is_floating_point() else []
