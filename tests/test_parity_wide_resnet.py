"""WideResNet against an implementation in PyTorch of this file's own: timm and torchvision have
none for CIFAR.
"""

import jax
import numpy as np
import pytest

from gnpcli.models.families import wide_resnet
from tests.networks import build

torch = pytest.importorskip("torch")
nn = torch.nn
CLASSES = 7


def modules(**named):
    container = nn.Module()
    for name, module in named.items():
        container.add_module(name, module)
    return container


def unit(inputs, outputs, stride):
    """The parts of a block, arXiv 1605.07146 figure 1(c)."""
    parts = {
        "bn1": nn.BatchNorm2d(inputs),
        "conv1": nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        "bn2": nn.BatchNorm2d(outputs),
        "conv2": nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
    }
    if inputs != outputs:
        parts["convShortcut"] = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
    return modules(**parts)


def network(depth, width):
    groups, channels = {}, 16
    for group in range(3):
        outputs, layers = 16 * 2**group * width, []
        for index in range((depth - 4) // 6):
            layers.append(unit(channels, outputs, 2 if group and not index else 1))
            channels = outputs
        groups[f"block{group + 1}"] = modules(layer=nn.ModuleList(layers))
    stem, last = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
    return modules(conv1=stem, **groups, bn1=last, fc=nn.Linear(channels, CLASSES)).eval()


def forward(net, images):
    x = net.conv1(images)
    for group in (net.block1, net.block2, net.block3):
        for block in group.layer:
            activated = torch.relu(block.bn1(x))
            y = block.conv2(torch.relu(block.bn2(block.conv1(activated))))
            x = y + (block.convShortcut(activated) if hasattr(block, "convShortcut") else x)
    return net.fc(torch.relu(net.bn1(x)).mean(dim=(2, 3)))


@pytest.mark.parametrize(("depth", "width", "size"), [(16, 4, 32), (28, 2, 33)])
def test_wide_resnet_equals_reference(depth, width, size, record_error):
    torch.manual_seed(0)
    net = network(depth, width)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.ndim == 1:
                tensor.uniform_(*((0.5, 1.5) if name.endswith(("weight", "var")) else (-0.3, 0.3)))
    images = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = forward(net, torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    assert wanted.std() > 0.1
    params, state = wide_resnet.FAMILY.from_torch(
        {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    )
    assert wide_resnet.FAMILY.facts(params) == (32, 3, {})
    sizes = {"depth": depth, "width": width}
    ours = build("wrn-16-4", sizes, num_classes=CLASSES, image_size=size)
    logits, _ = jax.jit(ours.apply, static_argnames="train")(
        params, state, images, train=False, key=None
    )
    record_error("WideResNet", "independent", logits, wanted)
