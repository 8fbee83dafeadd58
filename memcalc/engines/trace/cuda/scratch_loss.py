"""Losses that are one operator and work in steps."""

from __future__ import annotations

from typing import Any

from memcalc.engines.trace.cuda.scratch import Arguments, Scratch, contiguous_copy, nbytes, scratch
from memcalc.kernels.behaviour import Behaviour

NONE = 0  # Reduction.h:Reduction::None


@scratch("mse_loss", "smooth_l1_loss", source="native/BinaryOps.cpp: structured, then the mean of native/Loss.cpp")
def _structured(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    # the meta function makes an output of every element, which its iterator keeps, and the kernel makes another
    size = nbytes(args["self"])
    return [] if args["reduction"] == NONE else [Scratch("the iterator's output", size), Scratch("loss", size)]


@scratch("huber_loss", "soft_margin_loss", source="native/Loss.cpp: the loss of each element, then its mean")
def _pointwise(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    return [] if args["reduction"] == NONE else [Scratch("loss", nbytes(args["self"]))]


@scratch("binary_cross_entropy", source="native/cuda/Loss.cu:binary_cross_entropy_out_cuda")
def _bce(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    return [] if args["reduction"] == NONE else [Scratch("loss", nbytes(args["self"]))]


@scratch(
    "binary_cross_entropy_with_logits", source="native/Loss.cpp:binary_cross_entropy_with_logits: log_sigmoid, then 1 - target"
)
def _bce_logits(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    size = nbytes(args["self"])
    found = [Scratch("log_sigmoid", size)]
    if args["pos_weight"] is not None:
        found.append(Scratch("log_weight", size))
    return found if args["reduction"] == NONE else [*found, Scratch("loss", size)]


@scratch("nll_loss2d_forward", source="native/cuda/NLLLoss2d.cu:nll_loss2d_forward_out_cuda_template")
def _nll_2d(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    return contiguous_copy("input", args["self"]) + contiguous_copy("target", args["target"])
