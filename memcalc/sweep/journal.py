"""Parts of a file on their way, and the journal that says which are done: killed at any moment, a sweep goes on from there.

Beside ``rows.csv`` stands ``rows.csv.parts``: a file for each chunk of points, and ``journal.jsonl``, to which a line is
added, and forced to the disk, once a chunk's file is there whole. At the end the parts become the file in one rename.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from memcalc.errors import InputError
from memcalc.sweep.writers import Writer, flush

JOURNAL = "journal.jsonl"
MERGED = "merged.tmp"
CHANGES = {
    "memcalc": "memcalc", "columns": "its columns", "form": "the form", "sweep": "the sweep's file",
    "sources": "a model or device that it names",
}  # fmt: skip
"""What a journal begins with, and what is said to have changed where a new run's differs."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One finished chunk: the points it covers and the file that holds their rows."""

    part: int
    start: int
    stop: int
    rows: int
    errors: int
    bytes: int
    sha256: str


@contextlib.contextmanager
def written(path: Path) -> Iterator[None]:
    """What the system refuses to write, as an error a person can mend.

    Raises:
        InputError: a full disk, a folder that may not be written, a file system that cannot.
    """
    try:
        yield
    except OSError as error:
        rule = f"cannot be written ({error.strerror or error})"
        raise InputError("--output", str(path), rule, "free space or name another place; what is done is kept") from None


class Parts:
    """The folder of parts of one file.

    Args:
        output: the file.
        writer: its form.
        header: what must agree for parts to go on: the sweep's fingerprint among it.
        chunk: points to a chunk; None takes what the journal says, or the default.
        restart: whether to throw away what is there.
    """

    def __init__(self, output: Path, writer: Writer, header: dict[str, Any], *, chunk: int | None, default: int,
                 restart: bool) -> None:  # fmt: skip
        self.output, self.writer = output, writer
        self.folder = output.with_name(output.name + ".parts")
        self.done: dict[int, Chunk] = {}
        with written(output):
            if output.is_dir():
                raise IsADirectoryError(None, "Is a directory")
            self.folder.mkdir(exist_ok=True)
            # unbuffered: what cannot be written is known at once, and never tried again when the file is closed
            self.journal = (self.folder / JOURNAL).open("a+b", buffering=0)
        try:
            self._lock()
            self.chunk = self._begin(header, chunk, default, restart=restart)
        except BaseException:
            self.journal.close()
            raise

    def _lock(self) -> None:
        """Refuse a second sweep into the same file; the lock goes with the process, however it ends."""
        with contextlib.suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(self.journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError("--output", str(self.output), "is being written by another sweep", "wait for it") from None

    def _begin(self, header: dict[str, Any], chunk: int | None, default: int, *, restart: bool) -> int:
        """Take up what is there, or start; the number of points to a chunk."""
        lines = [] if restart else self._lines()
        if lines:
            self._same(lines[0], header, chunk)
            size = int(lines[0]["chunk"])
            for line in lines[1:]:
                found = Chunk(**line)
                if self._whole(found):
                    self.done[found.part] = found
            return size
        size = chunk or default
        with written(self.output):
            for leftover in self.folder.iterdir():
                if leftover.name == MERGED or (leftover.stem.isdigit() and leftover.suffix in (self.writer.suffix, ".tmp")):
                    leftover.unlink()
            self.journal.truncate(0)
            self._append({**header, "chunk": size})
        return size

    def _lines(self) -> list[dict[str, Any]]:
        """The journal's whole lines; one that was cut short is cut off."""
        self.journal.seek(0)
        text = self.journal.read()
        end = text.rfind(b"\n") + 1
        lines = []
        for line in text[:end].splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                # a machine that lost power may leave noise: nothing behind it is trusted
                break
        kept = sum(len(line) + 1 for line in text[:end].split(b"\n")[: len(lines)])
        with written(self.output):
            self.journal.truncate(kept)
        return lines

    def _same(self, found: dict[str, Any], header: dict[str, Any], chunk: int | None) -> None:
        """Refuse to go on with what another sweep began."""
        where = str(self.folder)
        start_over = "put it back as it was, or start over with --restart"
        for key, what in CHANGES.items():
            if found.get(key) != header[key]:
                raise InputError("--output", where, f"holds parts of a run before {what} changed", start_over)
        if chunk is not None and found.get("chunk") != chunk:
            rule = f"is not what its parts were begun with, {found.get('chunk')}"
            raise InputError("--chunk", chunk, rule, "leave it out, or start over with --restart")

    def _whole(self, chunk: Chunk) -> bool:
        """Whether a chunk's file is there as it was written."""
        try:
            data = self.file(chunk.part).read_bytes()
        except OSError:
            return False
        return len(data) == chunk.bytes and sha256(data).hexdigest() == chunk.sha256

    def file(self, part: int) -> Path:
        """The file of a chunk."""
        return self.folder / f"{part:08d}{self.writer.suffix}"

    def add(self, part: int, start: int, stop: int, rows: int, errors: int, data: bytes) -> None:
        """A finished chunk: its file first, then, once that is safe, its line."""
        made = self.file(part).with_suffix(".tmp")
        with written(self.output), _removed_on_error(made):
            with made.open("wb") as file:
                file.write(data)
                flush(file)
            made.replace(self.file(part))
            _flush_folder(self.folder)
            done = Chunk(part, start, stop, rows, errors, len(data), sha256(data).hexdigest())
            self._append(asdict(done))
        self.done[part] = done

    def _append(self, line: dict[str, Any]) -> None:
        text = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        if self.journal.write(text) != len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(self.journal.fileno())

    def merge(self) -> None:
        """The file, whole and at once; then the parts go, their journal first, so that half of them are never taken up."""
        merged = self.folder / MERGED
        with written(self.output), _removed_on_error(merged):
            self.writer.join((self.file(part) for part in sorted(self.done)), merged)
            merged.replace(self.output)
            _flush_folder(self.output.parent)
            (self.folder / JOURNAL).unlink()
            for part in self.done:
                self.file(part).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # somebody's own file in it keeps it
        self.close()

    def close(self) -> None:
        """Let the journal, and its lock, go."""
        self.journal.close()


@contextlib.contextmanager
def _removed_on_error(file: Path) -> Iterator[None]:
    """A file that could not be finished does not stay."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
        raise


def _flush_folder(folder: Path) -> None:
    """A rename is on the disk when this returns, where folders can be forced there."""
    with contextlib.suppress(OSError, NotImplementedError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
