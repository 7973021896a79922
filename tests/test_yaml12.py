"""What YAML is read as, what text is written as, and the bounds of both."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path
from typing import Any

import pytest

from gnpcli.config import yaml12
from gnpcli.config.loader import Layer, dump, parse_overrides, read_yaml, validate
from gnpcli.config.section import ModelSection
from gnpcli.config.yaml12 import NotYaml, read, write
from gnpcli.errors import ConfigError
from gnpcli.models.registry import model_section
from tests.schema import Key, every_key

CORE = [
    ("", None), ("~", None), ("null", None), ("Null", None), ("NULL", None), ("nULL", "nULL"),
    ("true", True), ("True", True), ("TRUE", True), ("False", False), ("tRUE", "tRUE"),
    ("yes", "yes"), ("No", "No"), ("on", "on"), ("OFF", "OFF"), ("y", "y"), ("n", "n"),
    ("0", 0), ("010", 10), ("-08", -8), ("+3", 3), ("0o17", 15), ("0x1F", 31), ("0b1", "0b1"),
    ("1_000", "1_000"), ("0x_", "0x_"), ("0o8", "0o8"), ("-0x1", "-0x1"), ("1:30", "1:30"),
    ("190:20:30", "190:20:30"), ("190:20:30.15", "190:20:30.15"), ("25921e05", 25921e5),
    ("1e5", 1e5), ("1E-5", 1e-5), (".5", 0.5), ("-.5", -0.5), ("5.", 5.0), ("1.5.0", "1.5.0"),
    (".", "."), ("e5", "e5"), (".inf", math.inf), ("-.INF", -math.inf), ("inf", "inf"),
    ("2020-01-01", "2020-01-01"), ("2001-12-14t21:59:43.10-05:00", "2001-12-14t21:59:43.10-05:00"),
    ("=", "="), ("<<", "<<"), ("!!str 3", "3"), ("!!float 3", 3.0), ("!!int 010", 10),
    ("'3'", "3"), ('"null"', "null"), ("\ufeffx", "\ufeffx"),
]  # fmt: skip
"""Plain scalars and what YAML 1.2's core schema says that they are."""


@pytest.mark.parametrize(("text", "value"), CORE)
def test_scalars_are_those_of_the_core_schema(text: str, value: Any):
    found = read(f"key: {text}").value["key"]
    assert found == value
    assert type(found) is type(value)


NASTY = [
    *(text for text, _ in CORE), "25921e05", "0x10", "- a", "a: b", "#x", "a #b", " lead", "trail ",
    "\u2028", "a\x85b", "\u2029", "😀", "%x", "@x", "`x", "!!int 3", "!x", "*a", "&a", "? a", "|",
    ">", "a\nb", "\n", "\r\n", "a\r", "a\tb", "\t", "\x7f", "\x1b[31m", "\ufeff", "a: ", ":", "a:",
    "-", "--- a", "---", "...", "[", "]", "{a", "}", ",", "'", '"', "it's", 'say "x"', "\\", "\\n",
    "C:\\x", "x" * 5000, "word " * 100, "é", "\udcff", "~/data", "~user", "$HOME", "a,b", "[1, 2]",
]  # fmt: skip
"""Texts that are easily read as something else."""


def some_texts(count: int) -> list[str]:
    """Return texts of random characters, most of which mean something to YAML."""
    draw = random.Random(0)
    alphabet = (
        "  \n\t\r\x85\u2028-:#?,[]{}&*!|>'\"%@`~=<.0123456789xXoeE+_nulltrueyab\\é😀\x7f\ufeff"
    )
    return ["".join(draw.choices(alphabet, k=draw.randint(0, 12))) for _ in range(count)]


def test_every_text_is_read_as_it_was_written():
    texts = NASTY + some_texts(3000)
    assert read(write(texts)).value == texts


@pytest.mark.parametrize("text", NASTY + some_texts(50))
def test_every_text_may_be_a_key(text: str):
    assert read(write({text: text})).value == {text: text}


NUMBERS = [0, -1, 2**40, 0.0, -0.5, 1e-300, 1e17, 0.1, 123456789.123, 1e22, math.inf, 5e-324]


@pytest.mark.parametrize("value", [*NUMBERS, None, True, False, [], {}, [[]], {"a": {}}])
def test_other_values_are_read_as_they_were_written(value: Any):
    found = read(write({"key": value})).value["key"]
    assert found == value
    assert type(found) is type(value)


TEXT_KEYS = [key for key in every_key() if str in key.types and not key.is_list]
OPEN_KEYS = [
    key for key in TEXT_KEYS if key.name not in ("name", "strategy") or key.section == "data"
]
"""The text keys whose values are not some choices."""


def test_the_text_keys_are_found():
    assert {str(key) for key in OPEN_KEYS} >= {"data.name", "data.dir", "train.init_from"}


@pytest.mark.parametrize("text", [text for text in NASTY if text not in ("", "\udcff")])
def test_every_text_of_a_configuration_survives_its_file(tmp_path: Path, text: str):
    values = OPEN_KEYS[0].values(text)
    for key in OPEN_KEYS:
        values[key.section] = {**values.get(key.section, {}), key.name: text}
    original = validate(Layer(values), model_section)
    path = tmp_path / "config.yaml"
    path.write_text(dump(original), encoding="utf-8")
    again = validate(read_yaml(path), model_section)
    assert again == original
    assert all(getattr(getattr(again, key.section), key.name) == text for key in OPEN_KEYS)


class OwnOptions(ModelSection):
    """Options of a model of one's own."""

    note: str = ""


@pytest.mark.parametrize("text", ["1e5", "010", "~", "a: b", "\u2028"])
def test_a_text_option_of_ones_own_model_survives(tmp_path: Path, text: str):
    values = {**OPEN_KEYS[0].values("digits"), "model": {"name": "own:x", "note": text}}
    original = validate(Layer(values), lambda name: OwnOptions)
    path = tmp_path / "config.yaml"
    path.write_text(dump(original), encoding="utf-8")
    assert validate(read_yaml(path), lambda name: OwnOptions) == original


@pytest.mark.parametrize("key", OPEN_KEYS, ids=str)
@pytest.mark.parametrize("text", ["a\0b", "\udcff"])
def test_a_character_that_no_path_holds_is_refused(key: Key, text: str):
    with pytest.raises(ConfigError, match="holds a NUL or a byte that is not UTF-8"):
        validate(Layer(key.values(text)), model_section)


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("010", "010"), ("25921e05", "25921e05"), ("true", "true"), ("a: b", "a: b"), ("#x", "#x"),
        ("[a]", "[a]"), ("@x", "@x"), ("*a", "*a"), (" x ", "x"), ("~/x", "~/x"),
        ("~user", "~user"),
        ("'null'", "null"), ('" x"', " x"), ("null", None), ("~", None), ("", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["data.dir", "data.train_split", "train.init_from"])
def test_the_value_of_a_text_key_is_text_as_typed(key: str, typed: str, value: str | None):
    (layer,) = parse_overrides([f"{key}={typed}"])
    section, _, name = key.partition(".")
    assert layer.values == {section: {name: value}}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: !!int x", ":1: not valid YAML: 'x' is not of the type that its tag says, int"),
        ("a: !!int 0x_", "'0x_' is not of the type"),
        ("a: !!null x", "is not of the type"),
        ("a: !!binary eA==", "a value has the tag !!binary, which a configuration has not"),
        ("a: !own x", "a value has the tag !own"),
        ("a: !!map x", "a value has the tag !!map"),
        ("a: !!set {x}", "a value has the tag !!set"),
        ("\na: " + "9" * 5000, ":2: a number has 5000 digits; at most 100 are read"),
        ("a: 0x" + "f" * 5000, "a number has 5002 digits"),
        ("a: &a [*a]", ":1: not a configuration: a section is inside itself"),
        ("a: &a {b: {c: *a}}", "a section is inside itself"),
        ("[" * 100_000, "it is nested too deeply: at most 32 levels are read"),
        ("{" * 100_000, "it is nested too deeply"),
        ("[\n" * 50_000, "it is nested too deeply"),
        ("- " * 50_000, "it is nested too deeply"),
        ("a: &a [x]\n" + "".join(f"b{i}: &b{i} [*{'b' if i else 'a'}{i - 1 if i else ''}]\n"
                                 for i in range(40)), "it is nested too deeply"),
        ("a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{below}: &{below} [{','.join([f'*{above}'] * 9)}]\n"
            for above, below in zip("abcdefgh", "bcdefghi", strict=True)),
         "it has too many values: at most 20000 are read, with those that aliases repeat"),
        ("a:\n" * 50_000, "it has too many values"),
        ("#" * (1 << 20), "it is too large: at most 262144 bytes are read"),
        ("1: x", ":1: the key 1 is no text: write it in quotes, '1'"),
        ("a:\n  true: x", ":2: the key true is no text: write it in quotes, 'true'"),
        ("? [a]\n: b", ":1: a key is a list or a section: keys are text"),
        ("a: b\n---\nc: d", "but found another document"),
        ('a: "\\UFFFFFFFF"', "not valid YAML"),
        ('"\\ud800": 1', ":1: the key '\\ud800' holds half a character or a NUL"),
        ("a: \x01", ":1: not valid YAML: it holds the character U+0001"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_one_line(tmp_path: Path, text: str, part: str):
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", ["&a [*a]", "[" * 5000, "9" * 5000, "!!int x", "!own x"])
def test_what_is_not_read_of_an_assignment_is_one_line(value: str):
    with pytest.raises(ConfigError, match=r"^--set train.epochs=") as caught:
        parse_overrides([f"train.epochs={value}"])
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_another_encoding_is_named(tmp_path: Path, encoding: str):
    path = tmp_path / "config.yaml"
    path.write_bytes("data: {name: digits}\n".encode(encoding))
    with pytest.raises(ConfigError, match="it is in UTF-16: save it in UTF-8"):
        read_yaml(path)


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbfdata:\r\n  name: digits\r\n")
    layer = read_yaml(path)
    assert layer.values == {"data": {"name": "digits"}}
    assert layer.where["data.name"] == f"{path}:2"


def test_a_pipe_that_nobody_writes_to_is_empty(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.yaml")
    assert read_yaml(tmp_path / "pipe.yaml").values == {}


def test_a_file_without_end_is_too_large():
    with pytest.raises(NotYaml, match="at most 262144 bytes"):
        yaml12.read_file(Path("/dev/zero"))


def test_a_folder_is_no_file(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        read_yaml(tmp_path)


@pytest.mark.parametrize("path", ["a\0.yaml", "x" * 300 + ".yaml"])
def test_a_path_that_cannot_be_is_one_line(path: str):
    with pytest.raises(ConfigError, match="cannot read"):
        read_yaml(Path(path))
