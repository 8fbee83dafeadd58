"""Files of rows: the same whatever interrupts their making, and never half there."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import memcalc.sweep.journal as journal
from memcalc.errors import InputError, MissingPackageError
from memcalc.sweep import NAMES, load_sweep, run
from memcalc.sweep.work import Worker

SPEC = {
    "base": {"memory": "24GiB", "scope": "states"},
    "grid": {
        "params": {"from": 10**6, "to": 10**8, "step": 2 * 10**6},
        "optimizer": ["adam", "adamw8bit", "admw"],
        "zero_stage": [0, 1],
        "dp": [1, 2, 5],
    },
    "exclude": [{"optimizer": "adamw8bit", "dp": 5}],
    "include": [{"model": "gpt2", "name": 'a "quoted", name'}, {"model": "gpt2", "name": "two\nlines"}],
}
FORMS = ["csv", "jsonl", "parquet"]


@pytest.fixture
def sheet(tmp_path):
    """A sweep's file."""
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(SPEC, sort_keys=False))
    return file


def read(file: Path) -> list[dict]:
    """The rows of a file, as a sweep yields them."""
    if file.suffix == ".parquet":
        return pytest.importorskip("pyarrow.parquet").read_table(file).to_pylist()
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text().splitlines()]
    with file.open(newline="") as lines:
        return [
            {name: None if cell == "" else int(cell) if cell.lstrip("-").isdigit() else cell for name, cell in row.items()}
            for row in csv.DictReader(lines)
        ]


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_is_what_is_yielded(tmp_path, form):
    """A file read back has every row, column and null of the sweep, quotes and line ends included, and leaves no parts."""
    rows = list(run(SPEC))
    done = run(SPEC, chunk=200).write(tmp_path / f"rows.{form}")
    assert (done.rows, done.errors, done.resumed) == (len(rows), sum(row["error"] is not None for row in rows), 0)
    assert read(done.path) == rows
    assert list(rows[0]) == list(NAMES)
    assert [file.name for file in tmp_path.iterdir()] == [f"rows.{form}"]


@pytest.mark.parametrize("form", FORMS)
def test_parquet_and_text_agree_on_types(tmp_path, form):
    """Bytes are whole numbers in every form, never floats or text."""
    done = run({"base": {"params": 10**9 + 7}}).write(tmp_path / f"rows.{form}")
    assert read(done.path)[0]["parameters"] == 2 * (10**9 + 7)
    if form == "parquet":
        import pyarrow.parquet as pq

        kinds = {field.name: str(field.type) for field in pq.read_schema(done.path)}
        assert (kinds["parameters"], kinds["verdict"]) == ("int64", "string")


def test_parquet_has_a_row_group_for_each_chunk(tmp_path):
    """A reader can skip what it does not need: chunks stay row groups."""
    pq = pytest.importorskip("pyarrow.parquet")
    done = run({"grid": {"params": list(range(1, 26))}}, chunk=10).write(tmp_path / "rows.parquet")
    groups = pq.ParquetFile(done.path).metadata
    assert [groups.row_group(at).num_rows for at in range(groups.num_row_groups)] == [10, 10, 5]


def interrupted(monkeypatch, output: Path, chunks: int, error: BaseException) -> None:
    """A run that ends after some chunks."""
    real = Worker.compute

    def compute(self, piece):
        if piece.part >= chunks:
            raise error
        return real(self, piece)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "compute", compute)
        with pytest.raises(type(error)):
            run(SPEC, chunk=100).write(output)


@pytest.mark.parametrize("form", FORMS)
def test_an_interrupted_run_is_taken_up_where_it_was(tmp_path, monkeypatch, form):
    """Finished chunks are not computed again, and the file is that of a run nobody interrupted, byte for byte."""
    whole = run(SPEC, chunk=100).write(tmp_path / f"whole.{form}").path.read_bytes()
    output = tmp_path / f"rows.{form}"
    interrupted(monkeypatch, output, 7, KeyboardInterrupt())
    assert not output.exists()
    computed = []
    real = Worker.compute
    monkeypatch.setattr(Worker, "compute", lambda self, piece: (computed.append(piece.part), real(self, piece))[1])
    done = run(SPEC).write(output)
    assert (done.resumed, computed) == (700, list(range(7, 10)))
    assert output.read_bytes() == whole
    assert not output.with_name(f"rows.{form}.parts").exists()


def test_a_torn_journal_and_a_damaged_part_cost_only_themselves(tmp_path, monkeypatch):
    """A line cut short is forgotten; a part that is not what its line says is computed again."""
    whole = run(SPEC, chunk=100).write(tmp_path / "whole.csv").path.read_bytes()
    output, parts = tmp_path / "rows.csv", tmp_path / "rows.csv.parts"
    interrupted(monkeypatch, output, 9, KeyboardInterrupt())
    log = parts / "journal.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    (parts / "00000003.csv").write_text("nonsense\n")
    (parts / "00000005.csv").unlink()
    done = run(SPEC).write(output)
    assert (done.resumed, output.read_bytes()) == (600, whole)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"base": {"memory": "25GiB", "scope": "states"}}, "holds parts of a run before the sweep's file changed"),
        ({"grid": dict(reversed(SPEC["grid"].items()))}, "holds parts of a run before the sweep's file changed"),
    ],
)
def test_parts_of_another_sweep_are_refused_and_named(tmp_path, monkeypatch, changed, said):
    """A changed file, even in the order of its axes, is not mixed with old parts; --restart is the way out, and works."""
    output = tmp_path / "rows.csv"
    interrupted(monkeypatch, output, 3, KeyboardInterrupt())
    with pytest.raises(InputError, match=f"{said}; put it back as it was, or start over with --restart"):
        run({**SPEC, **changed}).write(output)
    done = run({**SPEC, **changed}).write(output, restart=True)
    assert (done.resumed, done.rows) == (0, len(list(run({**SPEC, **changed}))))


def test_a_model_file_that_changed_is_another_sweep(tmp_path, monkeypatch):
    """Parts computed from a config before an edit are not mixed with rows computed from it after."""
    (tmp_path / "mine.yaml").write_text("model_type: gpt2\nn_layer: 3\n")
    spec = {"base": {"model": "mine.yaml"}, "grid": {"dp": [1, 2]}}
    real = Worker.compute
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "compute", lambda self, piece: real(self, piece) if piece.part == 0 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(spec, chunk=1, base_dir=tmp_path).write(tmp_path / "rows.csv")
    (tmp_path / "mine.yaml").write_text("model_type: gpt2\nn_layer: 4\n")
    with pytest.raises(InputError, match="before a model or device that it names changed"):
        run(spec, base_dir=tmp_path).write(tmp_path / "rows.csv")


def test_another_chunk_size_is_refused_and_none_takes_the_old_one(tmp_path, monkeypatch):
    """Parts cut otherwise cannot go on; leaving --chunk out takes them up as they are."""
    output = tmp_path / "rows.csv"
    interrupted(monkeypatch, output, 3, KeyboardInterrupt())
    with pytest.raises(InputError, match="--chunk: 50 is not what its parts were begun with, 100"):
        run(SPEC, chunk=50).write(output)
    assert run(SPEC).write(output).resumed == 300


def test_two_sweeps_do_not_write_one_file(tmp_path):
    """The second is told, while the first still runs."""
    pytest.importorskip("fcntl")
    output = tmp_path / "rows.csv"
    first = journal.Parts(output, journal.Writer, dict.fromkeys(journal.CHANGES, ""), chunk=1, default=1, restart=True)
    with pytest.raises(InputError, match="is being written by another sweep; wait for it"):
        run(SPEC).write(output)
    first.close()
    assert run(SPEC).write(output, restart=True).rows > 0


def test_a_full_disk_is_one_error_and_nothing_half_written(tmp_path, monkeypatch):
    """When the disk fills up, in a part, a journal or the merge, the file is not there, and room lets the run go on."""
    whole = run(SPEC, chunk=400).write(tmp_path / "whole.csv").path.read_bytes()
    output = tmp_path / "rows.csv"
    real = os.fsync
    flushed = []

    def flush(handle, fails):
        # only files: not every file system can force a folder, and that is no error
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            flushed.append(handle)
            if len(flushed) >= fails:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: flush(handle, 10**6))
        run(SPEC, chunk=400).write(output)
    output.unlink()
    last = len(flushed)
    for fails in (1, 2, 3, last // 2, last - 1, last):
        flushed.clear()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda handle, fails=fails: flush(handle, fails))
            with pytest.raises(InputError, match=r"cannot be written \(No space left on device\); free space"):
                run(SPEC, chunk=400).write(output, restart=True)
        assert not output.exists()
        assert list(tmp_path.glob("rows.csv.parts/*.tmp")) == []
    assert run(SPEC).write(output).path.read_bytes() == whole


def limited(size: int):
    """Let a process write no file larger than that."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_limit_of_the_system_is_one_line_and_exit_2(sheet):
    """The operating system itself refuses a write: one line, exit 2, no file."""
    output = sheet.with_name("rows.csv")
    words = [sys.executable, "-m", "memcalc", "sweep", sheet, "--output", output, "--chunk", "500"]
    done = subprocess.run(words, preexec_fn=limited(75_000), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("memcalc: --output: ")
    assert line.endswith("cannot be written (File too large); free space or name another place; what is done is kept")
    assert not output.exists()


@pytest.mark.parametrize("place", ["missing/rows.csv", "sweep.yaml/rows.csv", "folder.csv"])
def test_a_place_that_cannot_be_written_is_one_error(sheet, place):
    """A folder that is not there, a file in its place, a folder in the file's: said before anything is computed."""
    (sheet.parent / "folder.csv").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        run(sheet).write(sheet.parent / place)
    assert sorted(file.name for file in sheet.parent.iterdir()) == ["folder.csv", "sweep.yaml"]


def test_an_unknown_suffix_and_a_missing_package_are_said(tmp_path, monkeypatch):
    """The name decides the form; Parquet without pyarrow names the extra."""
    with pytest.raises(InputError, match=r"has a suffix no form goes by; did you mean csv\?"):
        run(SPEC).write(tmp_path / "rows.cvs")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match=r"pyarrow is not installed; pip install 'memcalc\[parquet\]'"):
        run(SPEC).write(tmp_path / "rows.parquet")
    assert list(tmp_path.iterdir()) == []


def finished(parts: Path) -> list[str]:
    """The journal's whole lines."""
    with contextlib.suppress(FileNotFoundError):
        return [line for line in (parts / "journal.jsonl").read_text().split("\n")[:-1] if line]
    return []


@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_bytes(sheet, jobs):
    """SIGKILL at random moments, again and again: no finished chunk is redone, no row is lost or doubled."""
    draw = random.Random(jobs)
    whole = run(load_sweep(sheet), chunk=20).write(sheet.with_name("whole.csv")).path.read_bytes()
    output, parts = sheet.with_name("rows.csv"), sheet.with_name("rows.csv.parts")
    words = [
        sys.executable,
        "-m",
        "memcalc",
        "sweep",
        sheet,
        "--output",
        output,
        "--quiet",
        "--chunk",
        "20",
        "--jobs",
        str(jobs),
    ]
    before: list[str] = []
    times: dict[str, int] = {}
    kills = 0
    for _ in range(30):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        ends = time.monotonic() + 60
        aim = len(before) + draw.randint(6, 14)
        while process.poll() is None and len(finished(parts)) < aim and time.monotonic() < ends:
            time.sleep(0.002)
        time.sleep(draw.random() * 0.05)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        _, said = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, said
        if kills and not (parts / "journal.jsonl").exists():  # killed in the very last acts: the file is there
            assert output.read_bytes() == whole
            before, times = [], {}
            continue
        after = finished(parts)
        assert after[: len(before)] == before
        redone = [name for name, made in times.items() if (parts / name).exists() and (parts / name).stat().st_mtime_ns != made]
        assert redone == []
        times = {f"{json.loads(line)['part']:08d}.csv": 0 for line in after[1:]}
        times = {name: (parts / name).stat().st_mtime_ns for name in times if (parts / name).exists()}
        before = after
    else:
        subprocess.run(words, check=True)
    assert kills >= 2
    assert output.read_bytes() == whole
    assert not parts.exists()


INTERRUPTED = """
import os, signal, sys
from memcalc.__main__ import main
from memcalc.sweep.journal import Parts

add = Parts.add

def interrupting(self, part, *rest):
    add(self, part, *rest)
    if part == 5:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which who started the tests may have ignored
        os.kill(os.getpid(), signal.SIGINT)

Parts.add = interrupting
main(sys.argv[1:])
"""


def test_ctrl_c_leaves_what_is_done_and_exits_130(sheet):
    """An interrupt is no error of anyone's: exit 130, and the next run goes on."""
    output = sheet.with_name("rows.csv")
    words = [sys.executable, "-c", INTERRUPTED, "sweep", sheet, "--output", output, "--chunk", "10"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    again = run(load_sweep(sheet)).write(output)
    assert again.resumed == 60
    assert output.read_bytes() == run(load_sweep(sheet)).write(sheet.with_name("whole.csv")).path.read_bytes()
