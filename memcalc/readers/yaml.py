r"""YAML as data and nothing more: no tags, every key once, bounded in size, depth and aliases, errors with a line.

What comes back holds mappings, lists, strings, integers, floats, booleans and None. Two readings of YAML 1.1 that surprise
are left out: ``2024-01-01`` stays text (it is no date) and ``1:30`` stays text (it is no number in base 60); ``1e-4`` is a
number, as it is in JSON. ``.nan`` and ``.inf`` are read as floats: whoever expects a number there refuses them.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import yaml
from yaml.constructor import ConstructorError
from yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, Event, ScalarEvent

from memcalc.errors import NO_VALUE, InputError
from memcalc.readers.files import read_bytes
from memcalc.units import MIB

if TYPE_CHECKING:
    from yaml import SafeLoader as _Base
else:
    _Base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MAX_SIZE = 4 * MIB
"""The largest file read, in bytes: far above any written by hand."""
MAX_DEPTH = 64
"""The deepest nesting of mappings and lists."""
MAX_NODES = 1_000_000
"""The most values a file may hold once its aliases are written out."""

_CORE = "tag:yaml.org,2002:"
_DATA = tuple(f"{_CORE}{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map"))
_REREAD = tuple(f"{_CORE}{kind}" for kind in ("timestamp", "int", "float"))


class YamlError(InputError):
    """A file that is not read; ``line`` counts from 1 and is None where the whole file is meant."""

    line: int | None = None

    @classmethod
    def at(cls, where: str, line: int | None, rule: str, way_out: str, value: object = NO_VALUE) -> YamlError:
        """The error at a line of a file: ``job.yaml:3: …``."""
        error = cls(where if line is None else f"{where}:{line}", value, rule, way_out)
        error.line = line
        return error


class _Loader(_Base):
    """PyYAML's safe loader, in C where it is there, for plain data alone and with each key once."""

    yaml_constructors: ClassVar[dict[Any, Any]] = {
        tag: built for tag, built in yaml.SafeLoader.yaml_constructors.items() if tag is None or tag in _DATA
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping, unless one of its keys stands twice; a key may override one that ``<<`` brings."""
        seen: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == f"{_CORE}merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise ConstructorError(None, None, "a key is a mapping or a list", key_node.start_mark)
            if key in seen:
                problem = f"the key {key!r} is already given on line {seen[key]}"
                raise ConstructorError(None, None, problem, key_node.start_mark)
            seen[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        """PyYAML's, with the line where Python refuses thousands of digits."""
        try:
            return int(self.construct_yaml_int(node))
        except ValueError:
            raise ConstructorError(None, None, "a number has too many digits", node.start_mark) from None


_INT = re.compile(r"[-+]?(?:0b[01][01_]*|0o?[0-7_]+|0x[0-9a-fA-F][0-9a-fA-F_]*|0|[1-9][0-9_]*)\Z")
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
                    r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))\Z|\.(?:nan|NaN|NAN)\Z")  # fmt: skip
_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in resolvers if pair[0] not in _REREAD]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_CORE}float", _FLOAT, list("-+0123456789."))
_Loader.add_implicit_resolver(f"{_CORE}int", _INT, list("-+0123456789"))
_Loader.add_constructor(f"{_CORE}int", _Loader.construct_int)


def load_yaml(source: Path | str, where: str = "") -> Any:
    r"""The one document in a file or a text.

    Args:
        source: a ``Path`` is opened; a ``str`` is the YAML itself.
        where: what errors call it; a file's path by default.

    Raises:
        InputError: not there, empty, too large, too deep, not YAML, or YAML that is more than data. One line, with the
            line number where there is one: ``job.yaml:3: …``.

    >>> load_yaml("a: 1\nb: [2, 1e-4, no]", "job.yaml")
    {'a': 1, 'b': [2, 0.0001, False]}
    """
    where, text, node = _parsed(source, where)
    return _built(text, node, where)


def load_yaml_with_lines(source: Path | str, where: str = "") -> tuple[Any, dict[str, int]]:
    r"""The document, and the line (from 1) on which each key or list entry stands, by dotted path.

    >>> load_yaml_with_lines("a:\n  b: 1\n  c:\n  - 2", "job.yaml")[1]
    {'a': 1, 'a.b': 2, 'a.c': 3, 'a.c.0': 4}
    """
    where, text, node = _parsed(source, where)
    built = _built(text, node, where)
    return built, _lines(node)  # in this order: building writes the keys that << brings into the nodes


def _parsed(source: Path | str, where: str) -> tuple[str, str, yaml.Node]:
    where = where or (str(source) if isinstance(source, Path) else "YAML")
    text = _text(source, where)
    try:
        _bounded(text, where)
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _from_yaml(error, text, where) from None
    if node is None or node.tag == f"{_CORE}null":
        raise YamlError.at(where, None, "holds nothing", "give it at least one key: value")
    return where, text, node


def _built(text: str, node: yaml.Node, where: str) -> Any:
    try:
        return _Loader("").construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise _from_yaml(error, text, where) from None


def _text(source: Path | str, where: str) -> str:
    if isinstance(source, Path):
        data = read_bytes(source, where, MAX_SIZE)
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise YamlError.at(where, line, "is not UTF-8 text", "save it as a UTF-8 text file") from None
    else:
        text = source
        if len(text) > MAX_SIZE:
            raise YamlError.at(where, None, f"is larger than {MAX_SIZE // MIB} MiB", "split it")
    odd = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if odd is not None:
        line = text.count("\n", 0, odd.start()) + 1
        raise YamlError.at(where, line, f"holds the control character {odd.group()!r}", "save it as plain text")
    return text


def _bounded(text: str, where: str) -> None:
    """Refuse what would grow when built, before anything is built: events come one by one and take no stack."""
    sizes: dict[str, int] = {}  # anchor -> values beneath it, aliases written out
    anchors: list[str | None] = []  # of the collections now open
    counts = [0]
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark else None
        _refuse_tag(event, where, line)
        if isinstance(event, CollectionStartEvent):
            anchors.append(event.anchor)
            counts.append(1)
            if len(anchors) > MAX_DEPTH:
                raise YamlError.at(where, line, f"is nested deeper than {MAX_DEPTH} levels", "flatten it")
        elif isinstance(event, CollectionEndEvent):
            size, anchor = counts.pop(), anchors.pop()
            counts[-1] += size
            sizes[anchor or ""] = size
        elif isinstance(event, ScalarEvent):
            counts[-1] += 1
            sizes[event.anchor or ""] = 1
        elif isinstance(event, AliasEvent):
            if event.anchor in anchors:
                raise YamlError.at(where, line, "is an alias inside itself", "write the value out", f"*{event.anchor}")
            counts[-1] += sizes.get(event.anchor or "", 0)  # an unknown anchor is refused when the nodes are composed
        if counts[-1] > MAX_NODES:
            rule = f"holds more than {MAX_NODES:,} values once its aliases are written out"
            raise YamlError.at(where, line, rule, "split it")


def _refuse_tag(event: Event, where: str, line: int | None) -> None:
    tag = getattr(event, "tag", None)
    if tag is not None and tag != "!":
        shown = f"!{tag}".replace(f"!{_CORE}", "!!")
        raise YamlError.at(where, line, "is a tag memcalc does not read", "write the plain value without it", shown)


def _lines(root: yaml.Node) -> dict[str, int]:
    lines: dict[str, int] = {}
    pending: list[tuple[str, yaml.Node]] = [("", root)]
    while pending:
        prefix, node = pending.pop()
        children: list[tuple[str, yaml.Node]] = []
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                children.append((f"{prefix}{key.value}", value))
                lines[children[-1][0]] = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                children.append((f"{prefix}{index}", value))
                lines[children[-1][0]] = value.start_mark.line + 1
        pending.extend((f"{name}.", value) for name, value in reversed(children))
    return lines


def _from_yaml(error: yaml.MarkedYAMLError, text: str, where: str) -> YamlError:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or str(error)
    # where the text ends too soon libyaml points at the line after the last
    line = None if mark is None else max(1, min(mark.line + 1, len(text.splitlines())))
    if problem.startswith("the key "):
        return YamlError.at(where, line, problem, "keep one of the two")
    if problem.startswith("a "):
        return YamlError.at(where, line, problem, "write it as plain text")
    shown = "" if line is None else "".join(text.splitlines()[line - 1 : line])
    if "\t" in shown[: len(shown) - len(shown.lstrip())]:
        return YamlError.at(where, line, "is indented with a tab", "indent with spaces")
    why = f"{error.context}: {problem}" if error.context else problem
    return YamlError.at(where, line, f"is not YAML ({why})", "check the indentation, the quotes and the colons")
