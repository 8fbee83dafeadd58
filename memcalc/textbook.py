"""The textbook's card and its claims, each beside memcalc's exact figure and the accounting that makes it true or false."""

from __future__ import annotations

from typing import Any

CARD = {"parameters": 2, "gradients": 2, "momentum": 4, "variance": 4, "master_parameters": 4}
"""Bytes per parameter of mixed precision with Adam (Rajbhandari et al. 2020, ZeRO, arXiv:1910.02054, section 3.1)."""

STATES_PER_PARAMETER: dict[str, float] = {
    "torch:Adam": 12,
    "torch:AdamW": 12,
    "torch:SGD+momentum": 4,
    "torch:Adagrad": 4,
    "bitsandbytes:Adam8bit": 8,
    "bitsandbytes:AdamW8bit": 8,
}
"""Bytes of optimizer state a parameter, as the textbook's table and text give them."""


def card(optimizer: str, parameters: int, stage: int, shards: int) -> dict[str, Any] | None:
    """The textbook's figures for one job; None for an optimizer it does not name.

    >>> card("torch:Adam", 1000, 1, 8)["optimizer_states_per_rank"]
    1500
    """
    each = STATES_PER_PARAMETER.get(optimizer)
    if each is None:
        return None
    states = round(each * parameters)
    return {
        "parameters": CARD["parameters"] * parameters,
        "gradients": CARD["gradients"] * parameters,
        "optimizer_states": states,
        "optimizer_states_per_rank": states // shards if stage else states,
        "accounting": "optimizer_states counts momentum, variance and the FP32 master copy" if each == 12 else "states alone",
    }
