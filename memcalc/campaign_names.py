"""What the cases of a campaign are called: by what tells them apart, in words that are fit for a file's name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

MAX_NAME = 96
"""The longest name of a case; a file system takes 255 bytes, and a suffix follows."""
SHORT = {
    "micro_batch_size": "b", "sequence_length": "s", "source_length": "src", "image_size": "i", "zero_stage": "zero",
    "gradient_accumulation_steps": "acc", "dp": "dp", "max_grad_norm": "clip", "iterations": "it", "seed": "seed",
}  # fmt: skip
"""What a number is marked with in a name."""


def varied(patch: Mapping[str, Any]) -> Iterator[str]:
    """What tells a case from its neighbours: words as they are, numbers with a letter."""
    for key, value in patch.items():
        if isinstance(value, Mapping):
            yield from varied({f"{name}=": what for name, what in value.items() if not isinstance(what, Mapping)})
        elif isinstance(value, bool) or key.endswith("="):
            yield f"{key.rstrip('=')}_{value}".lower()
        elif isinstance(value, str):
            yield value
        elif value is not None:
            yield f"{SHORT.get(key, key)}{value}"


def slug(text: str) -> str:
    """Text as the name of a file: lower case, words of letters and digits, one dash between.

    >>> slug("optimizers-torch:SGD+momentum-fp16")
    'optimizers-torch-sgd+momentum-fp16'
    """
    clean = re.sub(r"[^a-z0-9.+_=]+", "-", text.lower()).strip("-.")
    return clean if len(clean) <= MAX_NAME else f"{clean[: MAX_NAME - 9].rstrip('-')}-{digest(clean)[:8]}"


def digest(value: Any) -> str:
    """Tells one value of plain data from another."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
