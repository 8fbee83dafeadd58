"""The engine that runs a step for real: the truth the other two are held against. torch is imported only where it runs."""

from __future__ import annotations

from memcalc.engines.measure.process import measure_mapping

__all__ = ["measure_mapping"]
