"""``py:package.module:factory``: a live module from a person's own code, built without memory where it can be.

The factory runs on the meta device, where tensors have shapes and no bytes. Code that cannot run there (it reads a value, or
loads weights) runs again on the CPU, and the answer says so. What it prints goes to stderr: stdout is for answers.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from memcalc.errors import InputError, MissingPackageError, did_you_mean

if TYPE_CHECKING:
    import torch

_FORM = "write it as py:package.module:factory"


class Loaded(NamedTuple):
    """A module, built.

    Attributes:
        module: the module itself, its tensors on ``meta`` where that could be.
        name: what it was asked by.
        assumptions: how it had to be built, where that was not on the meta device.
    """

    module: torch.nn.Module
    name: str
    assumptions: tuple[str, ...] = ()


def load_target(target: str, app_dir: Path | None = None, *, path: str = "model", device: str = "meta") -> Loaded:
    """The module that ``py:package.module:factory`` names: a function of no arguments, a class or a module itself.

    Args:
        target: the reference; dots in the last part reach into classes and instances.
        app_dir: the folder put first on the import path; the current one by default.
        path: what errors call the value.
        device: where the factory's tensors are made.

    Raises:
        MissingPackageError: torch is not installed.
        InputError: not of that form, no such module or name, or an error in the code itself, with its file and line.
    """
    module_name, colon, attribute = target.removeprefix("py:").partition(":")
    dotted = [*module_name.split("."), *attribute.split(".")]
    if not colon or not all(part.isidentifier() for part in dotted):
        raise InputError(path, target, "does not name a factory", _FORM)
    try:
        import torch
    except ImportError:
        raise MissingPackageError.extra(path, "torch", "torch") from None
    folder = (app_dir or Path()).resolve()
    if not folder.is_dir():
        raise InputError("app_dir", str(folder), "is not a folder", "name the one that holds the code")
    code = _Code(target, path, folder)
    found = code.attribute(code.imported(module_name), module_name, attribute)
    if isinstance(found, torch.nn.Module):
        return Loaded(found, target)
    built, remarks = _built(found, code, device)
    if not isinstance(built, torch.nn.Module):
        raise InputError(path, target, f"gives {_a(type(built).__name__)}, not a torch.nn.Module", "return the module itself")
    return Loaded(built, target, remarks)


def load_function(target: str, app_dir: Path | None = None, *, path: str, named: str) -> Callable[..., Any]:
    """The function that ``py:package.module:function`` names.

    Args:
        target: the reference.
        app_dir: the folder put first on the import path; the current one by default.
        path: what errors call the value.
        named: what the function does, for whoever named something else.

    Raises:
        InputError: not of that form, no such module or name, no function, or an error in the code itself.
    """
    module_name, colon, attribute = target.removeprefix("py:").partition(":")
    if not colon or not all(part.isidentifier() for part in [*module_name.split("."), *attribute.split(".")]):
        raise InputError(path, target, "does not name a function", "write it as py:package.module:function")
    code = _Code(target, path, (app_dir or Path()).resolve())
    found = code.attribute(code.imported(module_name), module_name, attribute)
    if not callable(found):
        raise InputError(path, target, "is not a function", f"name one that {named}")
    function: Callable[..., Any] = found
    return function


class _Code(NamedTuple):
    """A person's code, and how errors speak of it."""

    target: str
    path: str
    folder: Path

    def imported(self, name: str) -> Any:
        """The module of that name, the folder first on the import path."""
        top = name.partition(".")[0]
        importlib.invalidate_caches()
        if str(self.folder) not in sys.path:
            sys.path.insert(0, str(self.folder))
        self._require_own(top)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise self.fault(error, "fails on import", "install it where memcalc runs") from None
            here = sorted(file.stem for file in self.folder.glob("*.py"))
            near = did_you_mean(top, here) if here else f"there is no Python file in {self.folder}"
            rule = f"names the module {error.name}, which is not there"
            raise InputError(self.path, self.target, rule, f"{near} (--app-dir is {self.folder})") from None
        except (Exception, SystemExit) as error:
            raise self.fault(error, "fails on import") from None

    def attribute(self, found: Any, module_name: str, dotted: str) -> Any:
        """What the last part of the target names inside the module."""
        for part in dotted.split("."):
            try:
                found = getattr(found, part)
            except AttributeError:
                near = did_you_mean(part, [name for name in dir(found) if not name.startswith("_")])
                raise InputError(self.path, self.target, f"is not there: {module_name} has no {part}", near) from None
        return found

    def fault(self, error: BaseException, what: str, way_out: str = "mend it there") -> InputError:
        """An error in the code itself, with the innermost of its own lines."""
        said = next(iter(str(error).strip().splitlines()), "")
        reason = f"{type(error).__name__}: {said}" if said else type(error).__name__
        return InputError(self.path, self.target, f"{what} at {self._line(error)} ({reason})", way_out)

    def _line(self, error: BaseException) -> str:
        if isinstance(error, SyntaxError) and error.filename:
            return f"{self._shown(error.filename)}:{error.lineno}"
        frames = traceback.extract_tb(error.__traceback__)
        own = [
            frame
            for frame in frames
            if Path(frame.filename).is_relative_to(self.folder) and "site-packages" not in frame.filename
        ]
        frame = (own or frames)[-1]
        return f"{self._shown(frame.filename)}:{frame.lineno}"

    def _shown(self, filename: str) -> str:
        file = Path(filename)
        return str(file.relative_to(self.folder)) if file.is_relative_to(self.folder) else filename

    def _require_own(self, top: str) -> None:
        """That a module already imported under that name is not another folder's."""
        spec, loaded = PathFinder.find_spec(top, [str(self.folder)]), sys.modules.get(top)
        origin, known = getattr(spec, "origin", None), getattr(loaded, "__file__", None)
        if origin and known and Path(origin).resolve() != Path(known).resolve():
            rule = f"means {origin}, but {known} is already imported as {top}"
            raise InputError(self.path, self.target, rule, "rename one, or ask in a process of its own")


def _built(factory: Any, code: _Code, device: str) -> tuple[Any, tuple[str, ...]]:
    """What the factory gives, on ``device`` or, failing that, on the CPU; and a remark on the latter."""
    import torch

    if not callable(factory):
        raise InputError(
            code.path, code.target, f"is {_a(type(factory).__name__)}, not a factory", "name a function or a class"
        )
    needed = _needed(factory)
    if needed:
        rule = f"needs arguments ({', '.join(needed)})"
        raise InputError(code.path, code.target, rule, "name a function that takes none and passes them")
    with _quietly():
        try:
            with torch.device(device):
                return factory(), ()
        except (Exception, SystemExit) as error:
            if device == "cpu":
                raise code.fault(error, "fails") from None
            first = code.fault(error, "fails")
        try:
            with torch.device("cpu"):
                built = factory()
        except (Exception, SystemExit) as error:
            raise code.fault(error, "fails") from None
    return built, (f"built on the CPU, weights and all: on the {device} device the factory {first.rule}",)


def _needed(factory: Callable[..., Any]) -> list[str]:
    """The arguments a call cannot do without."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some callables written in C have no signature
        return []
    fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [entry.name for entry in parameters if entry.default is entry.empty and entry.kind not in fixed]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Prints to stderr, and the default dtype put back as it was."""
    import torch

    dtype = torch.get_default_dtype()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        torch.set_default_dtype(dtype)


def _a(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"
