"""What is wrong with a configuration, in one line: the place, the key, and what is allowed."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from gnpcli.config.schema import NAMED
from gnpcli.errors import ConfigError, suggest

Places = Mapping[str, str]
"""Where each dotted key was written: ``file:line``, or an option such as ``--set``."""


def located(error: ConfigError, where: Places) -> ConfigError:
    """Return `error` with the place of its key in front of the message, if that is known."""
    source = _source(error.key, where) if error.key else ""
    return ConfigError(f"{source}{error}", error.key)


def explain(error: ValidationError, where: Places, keys: Sequence[str]) -> ConfigError:
    """Return what pydantic found as one line: the first problem, with its place, and a count.

    An unknown key goes before a missing one, because it may be the missing key misspelt.

    Args:
        error: From validating the values of a layer.
        where: The places of those values.
        keys: Every dotted key that may stand there.
    """
    found = [_problem(details) for details in error.errors()]
    first = min(found, key=lambda problem: problem.kind != "extra_forbidden")
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return ConfigError(f"{_source(first.place, where)}{_message(first, keys)}{more}")


class _Problem(NamedTuple):
    """One error of pydantic."""

    kind: str
    path: tuple[str, ...]
    """The parts of the key."""
    given: Any
    context: Mapping[str, Any]
    """The limits, or the choices."""
    text: str
    """What pydantic says."""

    @property
    def key(self) -> str:
        """The dotted key."""
        return ".".join(self.path)

    @property
    def place(self) -> str:
        """The dotted key of the value that is wrong."""
        return f"{self.key}.name" if self.kind == "name_unknown" else self.key


def _problem(details: Any) -> _Problem:
    path = tuple(str(part) for part in details["loc"])
    context = details.get("ctx", {})
    return _Problem(details["type"], path, details["input"], context, details["msg"])


def _message(problem: _Problem, keys: Sequence[str]) -> str:
    """Return what is wrong and what is allowed."""
    key, given, context = problem.key, problem.given, problem.context
    match problem.kind:
        case "extra_forbidden":
            return _unknown_key(problem.path, keys)
        case "missing":
            return f"missing key '{key}'"
        case "name_missing":
            return f"missing key '{key}.name' {_one_of(context['choices'])}"
        case "name_unknown":
            return _unknown_name(key, context["name"], context["choices"])
        case "literal_error":
            return f"{key}: {_not_one_of(given, _literals(context['expected']))}"
        case "unknown_choice":
            return f"{key}: {_not_one_of(given, context['choices'])}"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            return f"{key}: {_shown(given)} is out of range (must be {_limit(context)})"
        case "too_short" | "too_long":
            length = context.get("min_length", context.get("max_length"))
            bound = "at least" if problem.kind == "too_short" else "at most"
            return f"{key}: expected {bound} {length} values, got {_shown(given)}"
        case kind if kind in _FAULTS:
            return f"{key}: {_shown(given)} {_FAULTS[kind]}"
        case _:
            return f"{key}: expected {_wanted(problem)}, got {_shown(given)}"


_FAULTS = {
    "finite_number": "is not a finite number",
    "minutes": "is neither auto nor a number of minutes (must be > 0, must be <= 1000000)",
    "float32": "is 0 in float32, whose least number is 1.2e-38",
    "unusable_text": "holds a NUL or a byte that is not UTF-8",
}
"""What is wrong with a value, by the kind of error."""


def _wanted(problem: _Problem) -> str:
    """Return what a value should be."""
    if problem.kind == "string_type" and isinstance(problem.given, int | float):
        return "text (in quotes)"
    return _WANTED.get(problem.kind, problem.text)


def _shown(given: Any) -> str:
    """Return a value as Python writes it, in a few words whatever its size."""
    if isinstance(given, int) and given.bit_length() > 1000:
        return "one of over 300 digits"  # Python does not write those of over 4300
    return _SHORT.repr(given)


_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "model_type": "a section of keys",
    "dict_type": "a section of keys",
    "model_attributes_type": "a section of keys",
}
"""What a value should be, by the kind of error."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80

_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def _limit(context: Mapping[str, Any]) -> str:
    """Return the limit that a number does not keep, such as ``>= 0``."""
    name, bound = next(iter(context.items()))
    is_whole = bound == int(bound) and abs(bound) < 1e15
    return f"{_SIGNS[name]} {int(bound) if is_whole else format(bound, 'g')}"


def _unknown_key(path: Sequence[str], keys: Sequence[str]) -> str:
    """Suggest the key that is meant, or list the keys of the section."""
    key = ".".join(path)
    near = _near_key(path, keys)
    parent = ".".join(path[:-1])
    prefix = f"{parent}."
    siblings = [other.removeprefix(prefix) for other in keys if other.startswith(prefix)]
    listing = f"; {parent} has {', '.join(siblings)}" if siblings and not near else ""
    return f"unknown key '{key}'{near}{listing}{_of_another_choice(path)}"


def _near_key(path: Sequence[str], keys: Sequence[str]) -> str:
    if _of_another_choice(path):
        return ""  # the key is spelt well, and the nearest in letters is not what is meant
    return suggest(".".join(path), keys) or _suggest_last(path[-1], keys)


def _of_another_choice(path: Sequence[str]) -> str:
    """Say which other optimizers, say, have a key that the chosen one lacks."""
    section, name = path[0], path[-1]
    owners = [choice for choice, kind in NAMED.get(section, {}).items() if name in kind.key_names()]
    return f"; {name} is a key of {section}.name={' or '.join(owners)}" if owners else ""


def _suggest_last(word: str, keys: Sequence[str]) -> str:
    """Suggest by the last part alone: ``lr`` or ``optimzer.lr`` are close to ``optimizer.lr``."""
    for key in keys:
        if key.rpartition(".")[2] == word:
            return f" - did you mean '{key}'?"
    return ""


def _unknown_name(key: str, name: str, choices: Sequence[str]) -> str:
    return f"unknown {key} '{name}'{suggest(name, choices)} {_one_of(choices)}"


def _one_of(choices: Sequence[str]) -> str:
    return f"(one of {', '.join(choices)})"


def _not_one_of(given: Any, choices: Sequence[str]) -> str:
    near = suggest(str(given), choices)
    return f"'{given}' is not one of {', '.join(choices)}{near}"


def _literals(expected: str) -> list[str]:
    """Return the choices that pydantic enumerates: ``'a', 'b' or 'c'``."""
    return [choice.strip("' ") for choice in re.split(r",| or ", expected)]


def _source(key: str, where: Places) -> str:
    """Return the place of a key, or of the nearest section around it, with a colon."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        source = where.get(".".join(parts[:end]))
        if source:
            return f"{source}: "
    return ""
