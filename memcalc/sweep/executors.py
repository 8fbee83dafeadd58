"""Who computes the chunks: this process, several, or a Dask cluster. Results come in order whoever is first."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from memcalc.errors import InputError, MissingPackageError, did_you_mean
from memcalc.sweep.evaluate import Evaluator
from memcalc.sweep.work import Order, Piece, Result, Worker, compute

KINDS = ("in-process", "processes", "dask:ADDRESS")
AHEAD = 2
"""Chunks under way for each worker: one it computes, one that waits for it. More would be held in memory for nothing."""
CONNECT_SECONDS = 10
"""How long a Dask scheduler is waited for."""


def results(order: Order, pieces: Iterable[Piece], *, executor: str, jobs: int, evaluator: Evaluator) -> Iterator[Result]:
    """Every piece's result, in order.

    Raises:
        InputError: an executor there is none of, or one that cannot be reached.
        MissingPackageError: Dask is asked for and not installed.
    """
    if executor == "in-process":
        worker = Worker(order, evaluator)
        return (worker.compute(piece) for piece in pieces)
    if executor == "processes":
        return _processes(order, pieces, jobs)
    if executor.startswith("dask:"):
        return _dask(order, pieces, executor.removeprefix("dask:"))
    raise InputError("--executor", executor, "is not an executor", did_you_mean(executor, KINDS))


def _processes(order: Order, pieces: Iterable[Piece], jobs: int) -> Iterator[Result]:
    # spawn: a forked child would inherit the progress display's thread in the middle of whatever it does
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(max_workers=jobs, mp_context=context, initializer=_begin, initargs=(order,))
    try:
        yield from _in_order(lambda piece: pool.submit(_compute_here, piece), pieces, AHEAD * jobs)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


_order: Order | None = None


def _begin(order: Order) -> None:
    """Make a new process ready: it leaves Ctrl-C to its parent, and does not outlive it."""
    global _order
    _order = order
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _compute_here(piece: Piece) -> Result:
    assert _order is not None
    return compute(_order, piece)


def _connecting(client: Any) -> Any:
    """The class, of which one that never reached its scheduler goes quietly: it has nothing to close, and waits 20 s for it."""

    class Connecting(client):  # type: ignore[misc]
        def __del__(self) -> None:
            if getattr(self, "status", "") == "running":
                super().__del__()

    return Connecting


def _dask(order: Order, pieces: Iterable[Piece], address: str) -> Iterator[Result]:
    try:
        from distributed import Client
    except ImportError:
        raise MissingPackageError.extra("--executor", "distributed", "dask") from None
    try:
        client: Any = _connecting(Client)(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(
            "--executor", f"dask:{address}", f"cannot be reached ({error})", "check the scheduler's address"
        ) from None
    with contextlib.closing(client):
        workers = client.ncores()
        if not workers:
            raise InputError("--executor", f"dask:{address}", "has no workers", "start one, as: dask worker ADDRESS")
        shared = client.scatter(order, broadcast=True, hash=False)
        yield from _in_order(
            lambda piece: client.submit(compute, shared, piece, pure=False), pieces, AHEAD * sum(workers.values())
        )


def _in_order(submit: Callable[[Piece], Any], pieces: Iterable[Piece], ahead: int) -> Iterator[Result]:
    """Results in the order of the pieces, with at most ``ahead`` of them under way."""
    waiting: deque[Any] = deque()
    try:
        for piece in pieces:
            waiting.append(submit(piece))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
