"""How numbers are put for a person. Every message, table and page takes its words from here.

Code keeps fractions, seconds and bytes; these functions turn them into text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NOTHING = "-"
"""What stands for a value that is not there."""

_TIME_UNITS = ((86_400, "days"), (3_600, "h"), (60, "min"))
_SIZE_UNITS = ("B", "kB", "MB", "GB", "TB")

_ACTS_ON_A_TERMINAL = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # control characters, among them escape, newline and tabulator
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that turn the direction of text
    "\u2028\u2029"  # separators of lines and paragraphs
    "\ud800-\udfff"  # bytes of a file name that are not text
    "]"
)


def readable(text: str) -> str:
    """Return a text as one line that a terminal can only show.

    A name of a file or a class, or a message of another library, may hold characters that act on a
    terminal: that move its cursor, colour it, or turn the direction of text. Each of them becomes
    the escape that Python writes for it. The result is the same when it is made readable again.

    >>> readable("cat\\x1b[2J"), readable("two\\nlines"), readable("猫")
    ('cat\\\\x1b[2J', 'two\\\\nlines', '猫')
    """
    return _ACTS_ON_A_TERMINAL.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def number(value: float | None, form: str = ",", *, scale: float = 1) -> str:
    """Return ``scale * value`` in the format `form`, or a dash where there is no value.

    >>> number(11_200_000), number(None), number(2.5e9, ".1f", scale=1e-9)
    ('11,200,000', '-', '2.5')
    """
    return NOTHING if value is None else format(value * scale, form)


def percent(fraction: float | None, digits: int = 2) -> str:
    """Return a fraction, such as an error rate in [0, 1], as a percentage.

    >>> percent(0.03416), percent(0.5, digits=0), percent(None)
    ('3.42 %', '50 %', '-')
    """
    return NOTHING if fraction is None else f"{100 * fraction:.{digits}f} %"


def rough_percent(fraction: float | None, digits: int = 2) -> str:
    """Return a fraction as a percentage of `digits` significant digits.

    >>> rough_percent(0.000123), rough_percent(0.5)
    ('0.012 %', '50 %')
    """
    return NOTHING if fraction is None else f"{100 * fraction:.{digits}g} %"


def spread(mean: float, deviation: float | None, digits: int = 2) -> str:
    """Return a mean with its standard deviation, which one sample does not have.

    >>> spread(3.416, 0.1), spread(3.416, None)
    ('3.42 ± 0.10', '3.42')
    """
    text = f"{mean:.{digits}f}"
    return text if deviation is None else f"{text} ± {deviation:.{digits}f}"


def duration(seconds: float | None) -> str:
    """Return a length of time in its largest unit.

    >>> duration(42), duration(90), duration(7_200), duration(None)
    ('42 s', '1.5 min', '2.0 h', '-')
    """
    if seconds is None:
        return NOTHING
    for length, unit in _TIME_UNITS:
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def clock(seconds: float) -> str:
    """Return a time passed as a running clock, minutes and seconds.

    >>> clock(65.9), clock(3_725)
    ('1:05', '1:02:05')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(num_bytes: int | None) -> str:
    """Return a number of bytes in decimal units, with about three digits.

    >>> size(170_052_171), size(29_515), size(999), size(None)
    ('170 MB', '29.5 kB', '999 B', '-')
    """
    if num_bytes is None:
        return NOTHING
    value, unit = float(num_bytes), 0
    while value >= 999.5 and unit < len(_SIZE_UNITS) - 1:
        value /= 1000
        unit += 1
    digits = 0 if unit == 0 or value >= 99.95 else 1
    return f"{value:.{digits}f} {_SIZE_UNITS[unit]}"


def rate(per_second: float | None, unit: str = "images") -> str:
    """Return a speed: ``img/s`` of images, a size a second of bytes.

    >>> rate(12_345.6), rate(2_500_000, "bytes"), rate(None)
    ('12,346 img/s', '2.5 MB/s', '-')
    """
    if per_second is None:
        return NOTHING
    if unit == "bytes":
        return f"{size(int(per_second))}/s"
    return f"{per_second:,.0f} {'img' if unit == 'images' else unit}/s"


def amount(done: int, total: int | None, unit: str = "images") -> str:
    """Return how much of a piece of work is done. A `total` of 0 or None is not known.

    >>> amount(1_000, 50_000), amount(1_000, 0), amount(1_500_000, 3_000_000, "bytes")
    ('1,000/50,000 images', '1,000 images', '1.5 MB/3.0 MB')
    """
    if unit == "bytes":
        return f"{size(done)}/{size(total)}" if total else size(done)
    return f"{done:,}/{total:,} {unit}" if total else f"{done:,} {unit}"


def plural(count: int, noun: str, many: str | None = None) -> str:
    """Return a count with its noun.

    >>> plural(1, "seed"), plural(3, "seed"), plural(2, "class", "classes")
    ('1 seed', '3 seeds', '2 classes')
    """
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def listing(items: Iterable[Any], last: str = "and") -> str:
    """Return items as an enumeration.

    >>> listing(["a"]), listing(["a", "b"]), listing(["a", "b", "c"], last="or")
    ('a', 'a and b', 'a, b or c')
    """
    words = [str(item) for item in items]
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def few(items: Sequence[Any], most: int = 3) -> str:
    """Return the first items, and how many more there are.

    >>> few(["a", "b"]), few(["a", "b", "c", "d", "e"])
    ('a, b', 'a, b, c and 2 more')
    """
    shown = ", ".join(str(item) for item in items[:most])
    return f"{shown} and {len(items) - most:,} more" if len(items) > most else shown


def evaluation(result: Mapping[str, Any], split: str = "") -> str:
    """Return an evaluation's error and loss, and the top-5 error where it was measured.

    Args:
        result: ``error_rate`` in [0, 1], ``loss`` and, if there is one, ``top5_error_rate``.
        split: What was evaluated, if that is to be told.

    >>> evaluation({"error_rate": 0.034, "loss": 0.123}, "test")
    'test error 3.40 %  loss 0.1230'
    """
    parts = [f"error {percent(result['error_rate'])}"]
    if result.get("top5_error_rate") is not None:
        parts.append(f"top-5 error {percent(result['top5_error_rate'])}")
    parts.append(f"loss {number(result['loss'], '.4f')}")
    return " ".join(filter(None, [split, "  ".join(parts)]))
