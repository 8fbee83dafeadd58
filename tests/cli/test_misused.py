"""What people type by mistake or to break things: one line on stderr, the right exit code, and no half a file."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memcalc.__main__ import run
from memcalc.cli.streams import Answers, ReaderGoneError
from memcalc.errors import InputError

JOB = "model: {params: 1000000}\nscope: states\nmemory: 1KiB\n"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(JOB)
    Path("folder").mkdir()


@pytest.mark.parametrize(("words", "said"), [
    (("estimate", "gpt2", "--micro-batch-size", "nan"), "--micro-batch-size: nan is not a whole number; give one"),
    (("estimate", "gpt2", "--micro-batch-size="), "--micro-batch-size: '' is not a whole number; give one"),
    (("fit", "gpt2", "--max-grad-norm", "x"), "--max-grad-norm: x is not a number; give one"),
    (("estimate", "gpt2", "--top", "0"), "--top: 0 is too small; give 1 or more"),
    (("estimate", "gpt2", "--format", "xml"), "--format: xml is not one of the choices; use table, json, csv or markdown"),
    (("infer", "gpt2", "--mode", "train"), "--mode: train is not one of the choices; use evaluate, prefill or decode"),
    (("fit", "gpt2", "--max-cache-lenght", "3"), "--max-cache-lenght is not an option of memcalc fit; did you mean "
     "--max-cache-length, --cache-arg or --source-length?"),
    (("estimate", "--zzzz"), "--zzzz is not an option of memcalc estimate; see memcalc estimate --help"),
    (("estimate", "gpt2", "--gpu"), "--gpu needs a value; see memcalc estimate --help"),
    (("estimate", "gpt2", "--bytes=3"), "--bytes takes no value; see memcalc estimate --help"),
    (("estimate", "gpt2", "bert"), "got unexpected extra argument(s) (bert); see memcalc estimate --help"),
    (("check",), "JOB.yaml …: is missing; see memcalc check --help"),
    (("sweep", "none.yaml"), "none.yaml: does not exist; check the spelling of the path"),
    (("estimate", "job.yaml"), "model: says neither model_type nor base nor params, but model, scope, memory; give model_type "
     "and the keys of its config.json, base and what differs from it, or params; a file of jobs is for memcalc check"),
    (("estimate", "gpt2", "--app-dir", "none"), "app_dir: none is not a folder; name the one that holds the code"),
    (("estimate", "gpt2", "--max-grad-norm", "nan"), "training.max_grad_norm: nan is not a finite number; give one that is"),
    (("fit", "resnet-50", "--memory", "4GiB", "--largest", "sequence"), "largest: sequence is no size of resnet, which reads "
     "no tokens; seek the largest batch"),
])  # fmt: skip
def test_a_command_line_that_cannot_be_is_one_line(memcalc, words, said):
    """Path, value, rule and way out, on stderr alone, with exit code 2: no usage, no traceback, no half an answer."""
    answer = memcalc(*words)
    assert (answer.code, answer.out, answer.err) == (2, "", f"memcalc: {said}\n")


def test_memcalc_alone_shows_what_there_is(memcalc):
    """Its help, and 2: nothing was asked."""
    answer = memcalc()
    assert answer.code == 2
    assert "Commands:" in answer.err + answer.out


class Refusing:
    """A stream that fails after some characters."""

    encoding = "utf-8"

    def __init__(self, error: OSError, after: int = 0) -> None:
        self.error, self.left = error, after

    def write(self, text: str) -> int:
        self.left -= len(text)
        if self.left < 0:
            raise self.error
        return len(text)

    def flush(self) -> None:
        self.write("")

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        raise OSError("no file")


@pytest.mark.parametrize("form", ["text", "json", "csv", "markdown", "github", "junit"])
def test_a_reader_that_leaves_changes_no_verdict(monkeypatch, form):
    """A check that fails fails also where nobody reads why: a pipe into head must not turn no into yes."""
    monkeypatch.setattr(sys, "stdout", Refusing(BrokenPipeError(errno.EPIPE, "Broken pipe"), after=3))
    assert run(["check", "job.yaml", "--format", form]) == 1


def test_a_sweep_ends_with_its_reader(monkeypatch):
    """What would go on for a million rows that nobody reads stops there, and that is no error."""
    Path("sweep.yaml").write_text("base: {params: 1000000}\ngrid: {dp: {from: 1, to: 1000000, step: 1}}\n")
    monkeypatch.setattr(sys, "stdout", Refusing(BrokenPipeError(errno.EPIPE, "Broken pipe"), after=9000))
    assert run(["sweep", "sweep.yaml", "--format", "csv", "--chunk", "100"]) == 0


def test_a_full_disk_is_one_error(monkeypatch, capsys):
    """Of what writes answers, 2 with the system's reason; not a fault of memcalc's own."""
    monkeypatch.setattr(sys, "stdout", Refusing(OSError(errno.ENOSPC, "No space left on device")))
    assert run(["estimate", "gpt2", "--scope", "states"]) == 2
    said = capsys.readouterr().err
    assert said == "memcalc: stdout: cannot be written (No space left on device); make room, or send it elsewhere\n"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), BrokenPipeError(), ValueError("closed")])
def test_an_error_that_nobody_reads_is_still_an_error(monkeypatch, error):
    """Where stderr is full, gone or closed, the exit code is what it would have been."""
    monkeypatch.setattr(sys, "stderr", Refusing(error))
    assert run(["estimate", "nosuch"]) == 2
    assert run(["estimate", "gpt2", "--bogus"]) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_stderr_changes_no_exit_code():
    """Nor does what the interpreter still holds for it at its end."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "memcalc", "estimate", "nosuch"], stderr=full, timeout=60, check=False)
    assert done.returncode == 2


def test_streams_are_given_back(monkeypatch):
    """After a command both are what they were, closed ones too; the wrapper is a stream in every other respect."""
    stream = Refusing(BrokenPipeError(), after=10**9)
    monkeypatch.setattr(sys, "stdout", stream)
    run(["version"])
    assert sys.stdout is stream
    monkeypatch.setattr(sys, "stdout", None)
    assert run(["estimate", "job.yaml"]) == 2
    assert sys.stdout is None
    assert Answers(stream, endless=False).isatty() is False
    with pytest.raises(ReaderGoneError):
        Answers(Refusing(BrokenPipeError()), endless=True).writelines(["a", "b"])
    with pytest.raises(InputError, match="stdout: cannot be written"):
        Answers(Refusing(OSError(errno.EIO, "Input/output error"), after=-1), endless=True).flush()


def test_an_encoding_without_lines_draws_plainly():
    """A terminal or pipe that knows ASCII alone gets a table, with marks in place of what it cannot draw."""
    words = [sys.executable, "-m", "memcalc", "estimate", "gpt2", "--scope", "states"]
    done = subprocess.run(
        words, capture_output=True, timeout=60, check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "100"},
    )  # fmt: skip
    assert done.returncode == 0
    assert b"parameters" in done.stdout.decode("ascii").encode()


def test_a_snapshot_is_written_whole_or_not_at_all(memcalc):
    """Into a folder's name it cannot go: an error, and nothing lies there."""
    pytest.importorskip("transformers", reason="a trace")
    model = ("gpt2", *(word for key in ("n_layer=1", "n_embd=16", "n_head=2", "vocab_size=40") for word in ("--set", key)))
    words = ("estimate", *model, "--engine", "trace", "--sequence-length", "8", "--micro-batch-size", "1")
    answer = memcalc(*words, "--snapshot", "folder")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == "memcalc: --snapshot: folder cannot be written (Is a directory); name a place with room\n"
    assert sorted(path.name for path in Path().rglob("*")) == ["folder", "job.yaml"]
    assert memcalc(*words, "--snapshot", "step.pickle").code == 0
    assert Path("step.pickle").stat().st_size > 1000
