"""Processes and a Dask cluster compute what this process computes, in the same order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from memcalc.errors import InputError, MissingPackageError
from memcalc.sweep import run
from memcalc.sweep.executors import results
from memcalc.sweep.work import Order, Piece, Worker

SPEC = {
    "base": {"memory": "24GiB", "scope": "states"},
    "grid": {
        "model": ["gpt2", "mine.yaml", {"params": 10**9}, "nope"],
        "optimizer": ["adam", "adamw8bit", "admw"],
        "zero_stage": [0, 1],
        "dp": {"from": 1, "to": 3},
    },
    "include": [{"model": "gpt2", "dp": None, "scope": "step"}],
}


@pytest.fixture
def folder(tmp_path):
    """A folder with a model of its own, whose path only this folder makes right."""
    (tmp_path / "mine.yaml").write_text("model_type: gpt2\nn_layer: 3\n")
    return tmp_path


def test_processes_give_the_same_rows_in_the_same_order(folder):
    """Two processes write the very bytes that one writes."""
    one = run(SPEC, base_dir=folder, chunk=8).write(folder / "one.csv")
    two = run(SPEC, base_dir=folder, chunk=8, jobs=2).write(folder / "two.csv")
    assert one.path.read_bytes() == two.path.read_bytes()
    assert list(run(SPEC, base_dir=folder, chunk=12, executor="processes", jobs=2)) == list(run(SPEC, base_dir=folder))


def test_a_fault_in_another_process_is_raised_here(folder, monkeypatch):
    """What goes wrong far away is an error here, not a row that is missing."""
    order = Order("key", {"gird": {}}, None, None, False, "csv")
    with pytest.raises(InputError, match="gird: is not a known key"):
        list(results(order, [Piece(0, 0, 1)], executor="processes", jobs=1, evaluator=run(SPEC).evaluator))
    monkeypatch.setattr(Worker, "compute", lambda self, piece: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(run(SPEC, base_dir=folder))


def test_dask_gives_the_same_rows_in_the_same_order(folder):
    """A real scheduler with a worker over TCP computes the same bytes, and its client is closed again."""
    distributed = pytest.importorskip("distributed")
    one = run(SPEC, base_dir=folder, chunk=8).write(folder / "one.csv")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, protocol="tcp", dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        address = cluster.scheduler_address
        two = run(SPEC, base_dir=folder, chunk=8, executor=f"dask:{address}").write(folder / "two.csv")
        assert one.path.read_bytes() == two.path.read_bytes()


def test_an_executor_that_is_none_or_out_of_reach_is_said(folder, monkeypatch):
    """A misspelt executor, a scheduler that is not there, a missing package, and numbers below one."""
    with pytest.raises(InputError, match=r"--executor: process is not an executor; did you mean processes"):
        list(run(SPEC, executor="process"))
    with pytest.raises(InputError, match=r"--jobs: 0 is not above zero; give 1 or more"):
        run(SPEC, jobs=0)
    with pytest.raises(InputError, match=r"--chunk: -1 is not above zero; give 1 or more"):
        run(SPEC, chunk=-1)
    pytest.importorskip("distributed")
    monkeypatch.setattr("memcalc.sweep.executors.CONNECT_SECONDS", 1)
    with pytest.raises(InputError, match=r"--executor: dask:tcp://127.0.0.1:9 cannot be reached"):
        list(run(SPEC, executor="dask:tcp://127.0.0.1:9"))
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingPackageError, match=r"distributed is not installed; pip install 'memcalc\[dask\]'"):
        list(run(SPEC, executor="dask:tcp://127.0.0.1:9"))


def children(pid: int) -> set[int]:
    """The processes that one has started, by /proc."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[1] == str(pid):
            found.add(int(stat.parent.name))
    return found


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc for the processes left behind")
def test_no_process_outlives_a_killed_sweep(folder):
    """When the parent is killed outright its workers end by themselves."""
    sheet = folder / "sweep.yaml"
    sheet.write_text(yaml.safe_dump({"grid": {"params": {"from": 1, "to": 10**7}, "dp": [1, 2, 4]}}))
    words = [sys.executable, "-m", "memcalc", "sweep", sheet, "--output", folder / "rows.csv", "--jobs", "2", "--chunk", "500"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = folder / "rows.csv.parts" / "journal.jsonl"
    ends = time.monotonic() + 60
    while time.monotonic() < ends and not (journal.exists() and journal.read_bytes().count(b"\n") > 3):
        time.sleep(0.02)
    workers = children(process.pid)
    assert len(workers) >= 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while time.monotonic() < ends and any(runs(pid) for pid in workers):
        time.sleep(0.05)
    assert [pid for pid in workers if runs(pid)] == []
