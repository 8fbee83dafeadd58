"""Sweeps: a grid of jobs as rows of a table, computed over arrays by the code that computes one."""

from memcalc.sweep.columns import COLUMNS, NAMES, Column
from memcalc.sweep.spec import SweepFile, load_sweep, read_sweep
from memcalc.sweep.sweep import Sweep, Written, run

__all__ = ["COLUMNS", "NAMES", "Column", "Sweep", "SweepFile", "Written", "load_sweep", "read_sweep", "run"]
