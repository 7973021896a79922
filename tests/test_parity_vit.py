"""ViT against timm's and torchvision's, with the same random weights; skipped where they are
missing.
"""

import numpy as np
import pytest

from gnpcli.errors import CheckpointError
from gnpcli.models.families import vit
from tests.networks import arrays_of, build, imported_logits

torch = pytest.importorskip("torch")

SIZES = {"dim": 48, "depth": 3, "heads": 4, "mlp": 96}
IMAGE_SIZE, PATCH_SIZE, CLASSES = 32, 8, 7


def reference(library, gelu):
    if library == "timm":
        timm = pytest.importorskip("timm.models.vision_transformer")
        act = torch.nn.GELU if gelu == "exact" else lambda: torch.nn.GELU(approximate="tanh")
        model = timm.VisionTransformer(
            IMAGE_SIZE,
            PATCH_SIZE,
            embed_dim=48,
            depth=3,
            num_heads=4,
            mlp_ratio=2,
            num_classes=CLASSES,
            act_layer=act,
        )
    else:
        torchvision = pytest.importorskip("torchvision.models")
        model = torchvision.VisionTransformer(
            IMAGE_SIZE, PATCH_SIZE, 3, 4, 48, 96, num_classes=CLASSES
        )
    return with_random_weights(model)


def with_random_weights(model, seed=0):
    """Replace what initialisation leaves at 0 or 1, or so small that a mistake would not show."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            scale = 0.3 if parameter.ndim == 1 else 1.5 * parameter[0].numel() ** -0.5
            values = centre + scale * rng.normal(size=tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))
    return model.eval()


def logits_of(tensors, gelu, images):
    options = {"patch_size": PATCH_SIZE, "gelu": gelu}
    ours = build("vit-ti", SIZES, num_classes=CLASSES, image_size=IMAGE_SIZE, **options)
    return imported_logits(ours, "vit-ti", tensors, images)


@pytest.mark.parametrize(
    ("library", "gelu"), [("timm", "exact"), ("timm", "tanh"), ("torchvision", "exact")]
)
def test_vit_equals_reference(library, gelu, record_error):
    model = reference(library, gelu)
    images = np.random.default_rng(1).normal(size=(2, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    assert wanted.std() > 0.1
    record_error("ViT", library, logits_of(arrays_of(model), gelu, images), wanted)
    other = logits_of(arrays_of(model), {"exact": "tanh", "tanh": "exact"}[gelu], images)
    assert np.abs(other - wanted).max() / np.abs(wanted).max() > 1e-5  # a hundred times rounding


def test_facts():
    params, _ = vit.FAMILY.from_torch(arrays_of(reference("timm", "exact")))
    assert vit.FAMILY.facts(params) == (IMAGE_SIZE, 3, {"patch_size": PATCH_SIZE, "gelu": "exact"})


@pytest.mark.parametrize(("old", "new"), [(14, 24), (14, 8), (4, 7), (8, 8)])
def test_positions_are_resized_as_by_timm(old, new):
    resample = pytest.importorskip("timm.layers").resample_abs_pos_embed
    positions = np.random.default_rng(0).normal(size=(1, 1 + old**2, 6)).astype(np.float32)
    wanted = resample(torch.from_numpy(positions), [new, new], num_prefix_tokens=1).numpy()
    resized = vit.FAMILY.resize(("positions",), positions, wanted.shape)
    assert np.abs(resized - wanted).max() < 1e-5


def test_other_weights_are_refused():
    arrays = arrays_of(reference("timm", "exact"))
    with pytest.raises(
        CheckpointError, match=r"no place for the tensors dist_token, head_dist\.weight$"
    ):
        vit.FAMILY.from_torch(
            {**arrays, "dist_token": np.zeros((1, 1, 48)), "head_dist.weight": np.zeros((7, 48))}
        )
    del arrays["blocks.1.attn.qkv.bias"]
    with pytest.raises(CheckpointError, match=r"no tensor 'blocks\.1\.attn\.qkv\.bias'"):
        vit.FAMILY.from_torch(arrays)
