"""Swin against timm's implementation, with the same random weights; skipped where timm is not
installed.
"""

import jax
import numpy as np
import pytest

from gnpcli.errors import CheckpointError
from gnpcli.models.families import swin
from tests.networks import arrays_of, build, imported_logits

torch = pytest.importorskip("torch")
timm_swin = pytest.importorskip("timm.models.swin_transformer")

SIZES = {"dim": 16, "depth": 2, "heads": 2}


def reference(image_size, patch_size, window_size, classes=7):
    model = timm_swin.SwinTransformer(
        img_size=image_size,
        patch_size=patch_size,
        window_size=window_size,
        embed_dim=16,
        depths=(2, 2, 2, 2),
        num_heads=(2, 4, 8, 16),
        num_classes=classes,
    )
    return with_random_weights(model)


def with_random_weights(model, seed=0):
    """Replace what initialisation leaves at 0 or 1, or so small that a mistake would not show."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            scale = 0.3 if parameter.ndim == 1 else 1.5 * parameter[0].numel() ** -0.5
            if "bias_table" in name:
                scale = 1.0
            values = centre + scale * rng.normal(size=tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))
    return model.eval()


def both(image_size, patch_size, window_size):
    model = reference(image_size, patch_size, window_size)
    images = np.random.default_rng(1).normal(size=(2, image_size, image_size, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    options = {"patch_size": patch_size, "window_size": window_size}
    ours = build("swin-t", SIZES, num_classes=7, image_size=image_size, **options)
    logits = imported_logits(ours, "swin-t", arrays_of(model), images)
    assert wanted.std() > 0.1
    return logits, wanted


# Windows shifted in two stages, as large as the map in one and shrunk in one; windows of an odd
# side, shifted in three.
@pytest.mark.parametrize(("image_size", "patch_size", "window_size"), [(32, 2, 4), (56, 1, 7)])
def test_swin_equals_timm(image_size, patch_size, window_size, record_error):
    record_error("Swin", "timm", *both(image_size, patch_size, window_size))


def test_the_authors_names_are_understood():
    arrays = arrays_of(reference(32, 4, 4))
    renamed = {}
    for name, array in arrays.items():
        parts = name.split(".")
        if "downsample" in parts:
            parts[1] = str(int(parts[1]) - 1)
        renamed[".".join(parts).replace("head.fc.", "head.")] = array
    renamed["layers.0.blocks.1.attn_mask"] = np.zeros((4, 16, 16), np.float32)
    renamed["layers.0.blocks.1.attn.relative_position_index"] = np.zeros((16, 16), np.int64)
    assert renamed.keys() != arrays.keys()
    jax.tree.map(
        np.testing.assert_array_equal,
        swin.FAMILY.from_torch(renamed),
        swin.FAMILY.from_torch(arrays),
    )


def test_other_weights_are_refused():
    arrays = arrays_of(reference(32, 4, 4))
    with pytest.raises(CheckpointError, match=r"no place for the tensors absolute_pos_embed$"):
        swin.FAMILY.from_torch({**arrays, "absolute_pos_embed": np.zeros((1, 64, 16), np.float32)})
    del arrays["layers.1.downsample.norm.bias"]
    with pytest.raises(CheckpointError, match=r"no tensor 'layers\.1\.downsample\.norm\.bias'"):
        swin.FAMILY.from_torch(arrays)


@pytest.mark.parametrize(("old", "new"), [(7, 12), (7, 8), (7, 4)])
def test_tables_are_stretched_as_in_the_authors_code(old, new):
    stretch = pytest.importorskip("timm.layers.pos_embed_rel").resize_rel_pos_bias_table_simple
    y, x = np.meshgrid(*[np.linspace(-1, 1, 2 * old - 1)] * 2, indexing="ij")
    table = np.stack([np.exp(-2 * (x**2 + y**2)), np.sin(2 * x) + y], axis=-1).astype(np.float32)
    resized = swin.FAMILY.resize(
        ("attention", "relative_positions"), table, (2 * new - 1, 2 * new - 1, 2)
    )
    wanted = stretch(
        torch.from_numpy(table.reshape(-1, 2)), (new, new), ((2 * new - 1) ** 2, 2)
    ).numpy()
    # Keys' cubic has a = -0.5 here, as of images and position embeddings, and -0.75 there.
    assert np.abs(resized - wanted.reshape(resized.shape)).max() < 0.02 * np.ptp(table)


def test_facts():
    params, _ = swin.FAMILY.from_torch(arrays_of(reference(32, 1, 4)))
    assert swin.FAMILY.facts(params) == (32, 3, {"patch_size": 1, "window_size": 4})
