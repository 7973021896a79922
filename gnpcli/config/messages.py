"""What is wrong with a configuration, in one line: the place, the key, and what is allowed."""

from __future__ import annotations

import re
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
            return f"{key}: {given} is out of range (must be {_limit(context)})"
        case "too_short" | "too_long":
            length = context.get("min_length", context.get("max_length"))
            return f"{key}: expected {length} values, got {given!r}"
        case "finite_number":
            return f"{key}: {given} is not a finite number"
        case _:
            wanted = _WANTED.get(problem.kind, problem.text)
            return f"{key}: expected {wanted}, got {given!r}"


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

_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def _limit(context: Mapping[str, Any]) -> str:
    """Return the limit that a number does not keep, such as ``>= 0``."""
    name, bound = next(iter(context.items()))
    return f"{_SIGNS[name]} {bound:g}"


def _unknown_key(path: Sequence[str], keys: Sequence[str]) -> str:
    """Suggest the key that is meant, or list the keys of the section."""
    key = ".".join(path)
    near = _near_key(path, keys)
    parent = ".".join(path[:-1])
    prefix = f"{parent}."
    siblings = [other.removeprefix(prefix) for other in keys if other.startswith(prefix)]
    listing = f"; {parent} has {', '.join(siblings)}" if siblings and not near else ""
    return f"unknown key '{key}'{near}{listing}"


def _near_key(path: Sequence[str], keys: Sequence[str]) -> str:
    if _is_of_another_choice(path):
        return ""  # the key is spelt well, and the nearest in letters is not what is meant
    return suggest(".".join(path), keys) or _suggest_last(path[-1], keys)


def _is_of_another_choice(path: Sequence[str]) -> bool:
    """Return whether a key belongs to another optimizer, say, than the chosen one."""
    choices = NAMED.get(path[0], {})
    return any(path[-1] in kind.key_names() for kind in choices.values())


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
