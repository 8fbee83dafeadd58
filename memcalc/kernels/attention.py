"""Attention kernels: how they split their work."""

from __future__ import annotations

import math


def flash_splits(blocks: int, multiprocessors: int, key_blocks: int, most: int = 128) -> int:
    """Over how many parts of the keys a flash forward with few queries is split (flash_api.cpp:num_splits_heuristic).

    >>> flash_splits(1024, 132, 16), flash_splits(8, 132, 64)
    (1, 16)
    """
    if blocks >= 0.8 * multiprocessors:
        return 1
    most = min(most, multiprocessors, key_blocks)
    waves = [blocks * n / multiprocessors for n in range(1, most + 1)]
    able = [n == 1 or -(-key_blocks // n) != -(-key_blocks // (n - 1)) for n in range(1, most + 1)]
    efficiency = [wave / math.ceil(wave) if ok else 0.0 for wave, ok in zip(waves, able, strict=True)]
    best = max(efficiency)
    return next(n for n, found in enumerate(efficiency, 1) if able[n - 1] and found >= 0.85 * best)
