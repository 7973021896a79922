"""What a run would start from, for a dry run: the weights are read, and nothing is trained."""

from __future__ import annotations

from functools import partial

from gnpcli.config.resolved import Resolved
from gnpcli.config.section import UnloadedModel
from gnpcli.data.registry import describe_data
from gnpcli.keys import run_keys
from gnpcli.recipes.plan import fit
from gnpcli.terminal.screen import Screen
from gnpcli.weights.source import complete, fit_pretrained, in_words, open_pretrained


def planned_weights(config: Resolved, screen: Screen) -> tuple[Resolved, list[str]]:
    """Open the weights of ``train.init_from`` and fit them to the model.

    Args:
        config: The run.
        screen: Told of damaged checkpoints that were stepped over.

    Returns:
        The configuration with what the weights decide, and lines about them; no lines where the run
        starts from drawn weights. They are not fitted where the data set is not present, or the
        code of the model has not run.

    Raises:
        GnpError: As the training would: they cannot be read, or do not fit.
    """
    init_from = config.train.init_from
    if init_from is None:
        return config, []
    if isinstance(config.model, UnloadedModel):
        return config, [f"from {init_from}, not opened: the code of the model has not run"]
    pretrained = open_pretrained(config, screen)
    config = complete(config, pretrained)
    data = describe_data(config.data)
    if data is None:
        return config, in_words(pretrained, [])
    model, _ = fit(config, data)
    image_shape = (data.image_size, data.image_size, data.channels)
    init = partial(model.init, run_keys(config.train.seed).init, image_shape)
    return config, in_words(pretrained, fit_pretrained(pretrained, config, init).notes)
