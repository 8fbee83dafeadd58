"""What every test finds."""

from __future__ import annotations

import os

# Tensors here are tiny, and pytest-xdist has a worker on every core already: a second thread of OpenMP's only waits, and
# burns its core while it does. Set before anything imports torch; the processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
