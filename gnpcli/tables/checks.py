"""Whether the names in a table fit together. Every error names the file and the line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from gnpcli.config.loader import Tree
from gnpcli.config.section import Section
from gnpcli.errors import ConfigError, suggest
from gnpcli.tables.schema import Metric, PublishedValues, RowOrColumn, TableSpec, Variant

_NAME = re.compile(r"[a-z0-9][a-z0-9._+-]*")


def known_keys(values: Tree) -> Iterable[str]:
    """Return every dotted key that a table of these values may have."""
    yield from TableSpec.model_fields
    sections: dict[str, type[Section]] = {"metric": Metric, "published": PublishedValues}
    kinds: dict[str, type[Section]] = {
        "rows": RowOrColumn,
        "columns": RowOrColumn,
        "variants": Variant,
    }
    for part, kind in kinds.items():
        names = values.get(part)
        if isinstance(names, dict):
            sections |= {f"{part}.{name}": kind for name in names}
    for section, model in sections.items():
        yield from (f"{section}.{key}" for key in model.model_fields)


def check_names(spec: TableSpec, where: Mapping[str, str], path: Path) -> None:
    """Refuse names that do not fit together.

    Args:
        spec: The table.
        where: The place of each key, as ``file:line``.
        path: The file, for a key whose place is not known.

    Raises:
        ConfigError: A name that cannot be that of a folder, that nothing else has, or that is given
            twice; a cell with no preset or with two; a seed in a `set`.
    """
    check = _Check(where, path)
    for part in ("rows", "columns", "variants"):
        for name in getattr(spec, part):
            check.require_folder_name(part, name)
    check.require_known("baseline", "column", spec.baseline, spec.columns)
    for claim in spec.claims:
        check.require_known("claims", "column", claim.better, spec.columns)
        check.require_known("claims", "column", claim.than, spec.columns)
    if len(set(spec.seeds)) < len(spec.seeds):
        raise check.error("seeds", "a seed is given twice")
    if spec.published is not None:
        check.require_published(spec.published, spec)
    check.require_presets(spec)
    for key in where:
        if key.endswith("set.train.seed"):
            raise check.error(key, "train.seed is what `seeds` is for")


class _Check:
    """Knows where each key of a table stands."""

    def __init__(self, where: Mapping[str, str], path: Path):
        self._where, self._path = where, path

    def error(self, key: str, message: str) -> ConfigError:
        """Return an error at a key, or at the closest one above it that has a place."""
        parts = key.split(".")
        for end in range(len(parts), 0, -1):
            place = self._where.get(".".join(parts[:end]))
            if place:
                return ConfigError(f"{place}: {message}")
        return ConfigError(f"{self._path}: {message}")

    def require_folder_name(self, part: str, name: str) -> None:
        if not _NAME.fullmatch(name):
            allowed = "small letters, digits, '.', '_', '+' and '-'"
            raise self.error(f"{part}.{name}", f"'{name}' must be a name of {allowed}")

    def require_known(self, key: str, kind: str, name: str, choices: Mapping[str, object]) -> None:
        if name not in choices:
            hint = suggest(name, choices)
            listed = ", ".join(choices)
            raise self.error(key, f"unknown {kind} '{name}'{hint} ({kind}s: {listed})")

    def require_published(self, published: PublishedValues, spec: TableSpec) -> None:
        if published.variant is not None:
            self.require_known("published.variant", "variant", published.variant, spec.variants)
        for row, values in published.values.items():
            key = f"published.values.{row}"
            self.require_known(key, "row", row, spec.rows)
            for column in values:
                self.require_known(f"{key}.{column}", "column", column, spec.columns)

    def require_presets(self, spec: TableSpec) -> None:
        for row in spec.rows:
            for column in spec.columns:
                self._require_preset(spec, row, column)

    def _require_preset(self, spec: TableSpec, row: str, column: str) -> None:
        of_row, of_column = spec.rows[row].preset, spec.columns[column].preset
        if of_row is not None and of_column is not None:
            raise self.error(
                f"columns.{column}.preset",
                f"row {row} and column {column} both name a preset: leave one out",
            )
        if not (of_row or of_column or spec.preset):
            message = f"the cell of row {row} and column {column} has no preset"
            raise self.error(f"rows.{row}", message)
