"""Models of a few thousand parameters whose factories take no arguments, and some that go wrong."""

from __future__ import annotations

import os
import signal
import time

import torch

from memcalc.runtime import models


def transformer() -> torch.nn.Module:
    """The textbook decoder, small: every kind of tensor, and a matrix large enough for 8-bit states."""
    return models.transformer(vocabulary=256, width=32, layers=2, heads=2, positions=32)


class Wrong(torch.nn.Module):
    """A linear layer whose forward does something first, but not where no memory is asked for."""

    def __init__(self, deed) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.deed = deed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Linear, unless the deed prevents it."""
        out = self.linear(x)
        return self.deed(out)


def broken() -> torch.nn.Module:
    """Fails in forward with an error of its own."""

    def deed(out):
        raise KeyError("no such thing")

    return Wrong(deed)


def hungry() -> torch.nn.Module:
    """Asks the CPU for 2**60 bytes, which no machine has."""
    return Wrong(lambda out: out + torch.empty(2**60, dtype=torch.uint8).sum())


def infinite() -> torch.nn.Module:
    """Whose loss and every gradient are infinite."""
    return Wrong(lambda out: out * float("inf"))


def sleeping() -> torch.nn.Module:
    """Never comes back."""

    def deed(out):
        time.sleep(600)
        return out

    return Wrong(deed)


def killed() -> torch.nn.Module:
    """Is ended by the kernel in the middle of its first forward."""

    def deed(out):
        os.kill(os.getpid(), signal.SIGKILL)
        return out

    return Wrong(deed)


def killed_on_rank_1() -> torch.nn.Module:
    """The same on one of two ranks."""

    def deed(out):
        if os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return out

    return Wrong(deed)


def two_inputs() -> torch.nn.Module:
    """Reads two named tensors, and gives its answer in a dict."""

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(10, 6)
            self.linear = torch.nn.Linear(6, 3)

        def forward(self, ids, x):
            return {"logits": self.linear(self.table(ids) + x), "other": 1}

    return Both()


def frozen_half() -> torch.nn.Module:
    """Two layers, the first of them frozen, and a parameter the loss does not depend on."""
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
    module[0].requires_grad_(False)
    module.register_parameter("unused", torch.nn.Parameter(torch.zeros(5)))
    return module


def halves() -> torch.nn.Module:
    """Two equal layers, so that two ranks' flat partitions end where tensors end."""
    return torch.nn.Sequential(torch.nn.Linear(12, 12), torch.nn.Linear(12, 12))
