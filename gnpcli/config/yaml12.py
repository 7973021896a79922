"""YAML by the core schema of YAML 1.2: one table of scalars, for reading and for writing.

Reading is bounded in size, depth and number of values, so that no text takes long. Only plain data
are read: null, booleans, numbers, text, lists, and mappings whose keys are text.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gnpcli.files import open_at_once

MAX_BYTES = 1 << 18
"""Size of the largest file that is read; presets and tables have a few thousand bytes."""
MAX_DEPTH = 32
"""Sections and lists inside each other."""
MAX_VALUES = 20_000
"""Values of a file, with those that aliases repeat."""
MAX_DIGITS = 100
"""Length of a whole number."""

NULLS = ("", "~", "null", "Null", "NULL")
"""The scalars that are null."""

_CORE = "tag:yaml.org,2002:"


class NotYaml(Exception):
    """A text that is not read.

    Args:
        problem: What is wrong, without the place.
        line: Where, from 1; None where no line is to blame.
    """

    def __init__(self, problem: str, line: int | None = None):
        super().__init__(problem)
        self.line = line


@dataclass(frozen=True)
class Document:
    """What a text of YAML says."""

    value: Any
    """None for an empty text."""
    lines: dict[str, int] = field(default_factory=dict)
    """Line of every key of a mapping, from 1, by dotted key."""


def _whole_number(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise NotYaml(f"a number has {len(text)} digits; at most {MAX_DIGITS} are read")
    bases = {"0o": 8, "0x": 16}
    return int(text, bases.get(text[:2], 10))


def _number(text: str) -> float:
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


@dataclass(frozen=True)
class _Scalar:
    """A kind of plain scalar that is no text."""

    kind: str
    pattern: str
    first: str
    """The characters that it may begin with."""
    read: Callable[[str], Any]


_SCALARS = (
    _Scalar("null", "|".join(map(re.escape, NULLS)), "~nN", lambda text: None),
    _Scalar(
        "bool",
        r"true|True|TRUE|false|False|FALSE",
        "tTfF",
        lambda text: text.lower() == "true",
    ),
    _Scalar("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789", _whole_number),
    _Scalar(
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
        lambda text: _number(text.lower()),
    ),
)
"""YAML 1.2.2, section 10.3.2. Whatever matches none of them is text."""

_READERS: dict[str, Callable[[str], Any]] = {
    "str": str,
    **{scalar.kind: scalar.read for scalar in _SCALARS},
}

_Resolvers = dict[str, list[tuple[str, re.Pattern[str]]]]


def _resolvers() -> _Resolvers:
    """Return `_SCALARS` as PyYAML looks them up, by the first character."""
    found: _Resolvers = {}
    for scalar in _SCALARS:
        entry = (_CORE + scalar.kind, re.compile(rf"(?:{scalar.pattern})\Z"))
        for character in ["", *scalar.first] if scalar.kind == "null" else scalar.first:
            found.setdefault(character, []).append(entry)
    return found


class _Loader(yaml.SafeLoader):
    """Composes nodes, as deep and as many as is allowed."""

    yaml_implicit_resolvers = _resolvers()

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        self._nodes += 1
        line = self.line + 1
        _check_depth(self._depth, line)
        _check_count(self._nodes, line)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes each text that `_Loader` would read as something else."""

    yaml_implicit_resolvers = _resolvers()

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Only double quotes have escapes, which line breaks and characters that do not show need.
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar(f"{_CORE}str", text, style)


_Dumper.add_representer(str, _represent_text)


def _check_depth(depth: int, line: int) -> None:
    if depth > MAX_DEPTH:
        raise NotYaml(f"it is nested too deeply: at most {MAX_DEPTH} levels are read", line)


def _check_count(count: int, line: int) -> None:
    if count > MAX_VALUES:
        raise NotYaml(
            f"it has too many values: at most {MAX_VALUES} are read, with those that aliases "
            "repeat",
            line,
        )


def read_file(path: Path) -> Document:
    """Read a file of YAML, in UTF-8.

    Raises:
        OSError: The file cannot be read.
        NotYaml: It is in another encoding; and as `read`.
    """
    return read(_decoded(_first_bytes(path, MAX_BYTES + 1)))


def _first_bytes(path: Path, count: int) -> bytes:
    descriptor = open_at_once(path)
    os.set_blocking(descriptor, True)
    with open(descriptor, "rb") as file:
        return file.read(count)


def _decoded(content: bytes) -> str:
    if len(content) > MAX_BYTES:
        raise NotYaml(f"it is too large: at most {MAX_BYTES} bytes are read")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:2]:
        raise NotYaml("it is in UTF-16: save it in UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise NotYaml(
            f"byte {content[error.start]:#04x} is not UTF-8: save it in UTF-8", line
        ) from error


def read(text: str) -> Document:
    """Read a text of YAML.

    Raises:
        NotYaml: It is not YAML, says the same key twice, has a key that is no text or a value that
            is not of its tag, or exceeds a bound of this module.
    """
    if len(text) > MAX_BYTES:
        raise NotYaml(f"it is too large: at most {MAX_BYTES} characters are read")
    node = _compose(text)
    if node is None:
        return Document(None)
    values = _Values()
    return Document(values.read(node, ""), values.lines)


def _compose(text: str) -> yaml.Node | None:
    try:
        loader = _Loader(text)
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise NotYaml(f"not valid YAML: {error.problem}", line) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise NotYaml(
            f"not valid YAML: it holds the character U+{error.character:04X}", line
        ) from error
    except (ValueError, OverflowError) as error:  # an escape of no character, such as "\UFFFFFFFF"
        raise NotYaml(f"not valid YAML: {error}") from error


class _Values:
    """Turns the nodes of a text into values."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self._count = 0
        self._open: list[yaml.Node] = []

    def read(self, node: yaml.Node, key: str) -> Any:
        """Return the value of a node that stands at a dotted key."""
        line = node.start_mark.line + 1
        self._count += 1
        _check_count(self._count, line)
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        with self._inside(node, line):
            if isinstance(node, yaml.SequenceNode):
                _check_tag(node, "seq")
                return [self.read(item, key) for item in node.value]
            _check_tag(node, "map")
            return self._mapping(node, f"{key}." if key else "")

    @contextmanager
    def _inside(self, node: yaml.Node, line: int) -> Iterator[None]:
        if any(node is other for other in self._open):
            raise NotYaml("not a configuration: a section is inside itself", line)
        self._open.append(node)
        _check_depth(len(self._open), line)
        yield
        self._open.pop()

    def _mapping(self, node: yaml.Node, prefix: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            name, line = _key(key_node), key_node.start_mark.line + 1
            key = f"{prefix}{name}"
            if name in values:
                first = self.lines[key]
                raise NotYaml(f"'{key}' is given twice (first at line {first})", line)
            self.lines[key] = line
            values[name] = self.read(value_node, key)
        return values


def _key(node: yaml.Node) -> str:
    """Return a key of a mapping."""
    line = node.start_mark.line + 1
    if not isinstance(node, yaml.ScalarNode):
        raise NotYaml("a key is a list or a section: keys are text", line)
    if node.tag != f"{_CORE}str":
        raise NotYaml(f"the key {node.value} is no text: write it in quotes, '{node.value}'", line)
    return str(node.value)


def _scalar(node: yaml.ScalarNode) -> Any:
    """Return the value of a scalar by its tag, which `_Loader` resolved or the text gives."""
    line = node.start_mark.line + 1
    _check_tag(node, *_READERS)
    kind = node.tag.removeprefix(_CORE)
    try:
        _check_form(node.value, kind)
        return _READERS[kind](node.value)
    except NotYaml as error:
        raise NotYaml(str(error), line) from error


def _check_form(text: str, kind: str) -> None:
    """Refuse a text with the tag of a kind that it has not the form of: ``!!int x``."""
    forms = [scalar.pattern for scalar in _SCALARS if scalar.kind == kind]
    if forms and not re.fullmatch(forms[0], text):
        raise NotYaml(f"not valid YAML: {text[:40]!r} is not of the type that its tag says, {kind}")


def _check_tag(node: yaml.Node, *kinds: str) -> None:
    if node.tag not in {_CORE + kind for kind in kinds}:
        tag = node.tag.replace(_CORE, "!!")[:40]
        raise NotYaml(
            f"not valid YAML: a value has the tag {tag}, which a configuration has not",
            node.start_mark.line + 1,
        )


def write(value: Any) -> str:
    """Return plain data as YAML, which `read` reads as the same; a value a line."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf")
    )
    return text
