"""Residual networks against torchvision's and timm's, with the same random weights; skipped where
they are missing.
"""

import jax
import numpy as np
import pytest

from gnpcli.models.base import from_linen
from gnpcli.models.families.resnet import FAMILY, STAGES, ResNet
from gnpcli.models.layers.dense import DTYPES

torch = pytest.importorskip("torch")


def reference(library, depth):
    torch.manual_seed(0)
    if library == "timm":
        return pytest.importorskip("timm").create_model(
            f"resnet{depth}", num_classes=7, zero_init_last=False
        )
    return pytest.importorskip("torchvision").models.get_model(f"resnet{depth}", num_classes=7)


def with_random_norms(model):
    """Replace the affine parts and running averages of BatchNorm, whose initial values would hide
    mistakes.
    """
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim == 1:
                positive = name.endswith(("weight", "var"))
                tensor.uniform_(*((0.5, 1.5) if positive else (-0.3, 0.3)))
    return model.eval()


def both(model, depth, stem, size):
    images = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    params, state = FAMILY.from_torch(
        {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    )
    ours = from_linen(ResNet(STAGES[depth], depth >= 50, 64, 7, stem, "paper", DTYPES["float32"]))
    logits, _ = jax.jit(ours.apply, static_argnames="train")(
        params, state, images, train=False, key=None
    )
    assert wanted.std() > 0.1
    return logits, wanted


@pytest.mark.parametrize(
    ("library", "depth"), [("torchvision", 18), ("timm", 18), ("torchvision", 50), ("timm", 50)]
)
def test_resnet_equals_reference(library, depth, record_error):
    size = 64 if depth == 18 else 97  # odd sides too: they halve upwards
    record_error(
        "ResNet",
        library,
        *both(with_random_norms(reference(library, depth)), depth, "imagenet", size),
    )


def test_cifar_stem_equals_reference(record_error):
    model = reference("torchvision", 18)
    model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = torch.nn.Identity()
    record_error("ResNet", "torchvision", *both(with_random_norms(model), 18, "cifar", 32))
