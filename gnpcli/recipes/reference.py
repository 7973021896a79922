"""The page docs/configuration.md: every key of a configuration, and the options of every model.

``python -m gnpcli.recipes.reference > docs/configuration.md`` writes it.
"""

from __future__ import annotations

from gnpcli.config.reference import reference
from gnpcli.config.section import ModelSection
from gnpcli.models.registry import MODELS


def page() -> str:
    """Return the page in Markdown."""
    return reference(models_by_options())


def models_by_options() -> dict[type[ModelSection], list[str]]:
    """Return the names of the models that share options, by the class of the options."""
    found: dict[type[ModelSection], list[str]] = {}
    for name, entry in MODELS.items():
        found.setdefault(entry.options, []).append(name)
    return found


if __name__ == "__main__":
    print(page(), end="")
