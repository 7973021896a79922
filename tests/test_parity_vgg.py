"""VGG against torchvision's and timm's, with the same random weights; skipped where they are
missing.

Narrow convolutions: with full ones the first hidden layer is 400 MB.
"""

import jax
import numpy as np
import pytest

from gnpcli.models.base import from_linen
from gnpcli.models.families.vgg import FAMILY, STAGES, Vgg
from gnpcli.models.layers.dense import DTYPES

torch = pytest.importorskip("torch")

WIDTH, HIDDEN, CLASSES = 8, 4096, 7


def reference(library, depth, batch_norm):
    torch.manual_seed(0)
    layers = []
    for convolutions, multiple in zip(STAGES[depth], (1, 2, 4, 8, 8), strict=True):
        layers += [multiple * WIDTH] * convolutions + ["M"]
    if library == "timm":
        timm = pytest.importorskip("timm.models.vgg")
        norm = torch.nn.BatchNorm2d if batch_norm else None
        return timm.VGG(layers, num_classes=CLASSES, norm_layer=norm)
    vgg = pytest.importorskip("torchvision.models.vgg")
    model = vgg.VGG(
        vgg.make_layers(layers, batch_norm=batch_norm), num_classes=CLASSES, init_weights=False
    )
    model.classifier[0] = torch.nn.Linear(8 * WIDTH * 49, HIDDEN)
    return model


@pytest.mark.parametrize(
    ("library", "depth", "batch_norm"),
    [
        ("torchvision", 16, False),
        ("torchvision", 19, True),
        ("timm", 16, True),
        ("timm", 19, False),
    ],
)
def test_vgg_equals_reference(library, depth, batch_norm, record_error):
    model = reference(library, depth, batch_norm)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim == 1:
                tensor.uniform_(*((0.5, 1.5) if name.endswith(("weight", "var")) else (-0.3, 0.3)))
            elif tensor.ndim > 1:
                torch.nn.init.kaiming_normal_(tensor)
    images = np.random.default_rng(1).normal(size=(2, 224, 224, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    params, state = FAMILY.from_torch(
        {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    )
    ours = from_linen(
        Vgg(STAGES[depth], WIDTH, HIDDEN, batch_norm, CLASSES, 0.5, "paper", DTYPES["float32"])
    )
    logits, _ = jax.jit(ours.apply, static_argnames="train")(
        params, state, images, train=False, key=None
    )
    assert wanted.std() > 0.1
    record_error("VGG", library, logits, wanted)
