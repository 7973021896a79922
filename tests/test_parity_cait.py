"""CaiT against timm's implementation, with the same random weights; skipped where timm is not
installed.
"""

import numpy as np
import pytest

from gnpcli.errors import CheckpointError
from gnpcli.models.families import cait
from tests.networks import arrays_of, build, imported_logits

torch = pytest.importorskip("torch")
timm_cait = pytest.importorskip("timm.models.cait")

SIZES = {"dim": 48, "depth": 2, "heads": 4}


def reference(image_size, patch_size, classes=7):
    """Build timm's model, and replace what its initialisation leaves at 0 or 1, or so small that it
    would not show.
    """
    model = timm_cait.Cait(
        img_size=image_size,
        patch_size=patch_size,
        embed_dim=48,
        depth=2,
        num_heads=4,
        num_classes=classes,
    )
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = (
                1.0
                if parameter.ndim == 1 and name.endswith(("weight", "gamma_1", "gamma_2"))
                else 0.0
            )
            scale = 0.3 if parameter.ndim == 1 else 1.5 * parameter[0].numel() ** -0.5
            values = centre + scale * rng.normal(size=tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))
    return model.eval()


def test_cait_equals_timm(record_error):
    image_size, patch_size = 32, 8
    model = reference(image_size, patch_size)
    images = np.random.default_rng(1).normal(size=(2, image_size, image_size, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    ours = build("cait-xxs12", SIZES, num_classes=7, image_size=image_size, patch_size=patch_size)
    logits = imported_logits(ours, "cait-xxs12", arrays_of(model), images)
    assert wanted.std() > 0.1
    record_error("CaiT", "timm", logits, wanted)


def test_other_weights_are_refused():
    arrays = arrays_of(reference(16, 4))
    with pytest.raises(
        CheckpointError, match=r"no place for the tensors head_dist\.bias, head_dist\.weight$"
    ):
        cait.FAMILY.from_torch(
            {**arrays, "head_dist.weight": np.zeros((7, 48)), "head_dist.bias": np.zeros(7)}
        )
    del arrays["blocks.1.gamma_2"]
    with pytest.raises(CheckpointError, match=r"no tensor 'blocks\.1\.gamma_2'"):
        cait.FAMILY.from_torch(arrays)


def test_facts_and_positions():
    params, _ = cait.FAMILY.from_torch(arrays_of(reference(16, 4)))
    assert cait.FAMILY.facts(params) == (16, 3, {"patch_size": 4})
    resample = pytest.importorskip("timm.layers").resample_abs_pos_embed
    wanted = resample(torch.from_numpy(params["positions"]), [7, 7], num_prefix_tokens=0).numpy()
    assert (
        np.abs(cait.FAMILY.resize(("positions",), params["positions"], wanted.shape) - wanted).max()
        < 1e-5
    )
