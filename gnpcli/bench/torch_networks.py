"""Networks of timm and torchvision that are the same as this package's, by family.

PyTorch, torchvision and timm come with the optional extra ``parity``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from gnpcli.data.base import DataSpec
from gnpcli.models.families.resnet import STAGES as RESNET_STAGES
from gnpcli.models.families.vgg import STAGES as VGG_STAGES
from gnpcli.models.families.vgg import WIDTHS as VGG_WIDTHS
from gnpcli.models.options import CaitOptions, ResnetOptions, SwinOptions, VggOptions, VitOptions

Build = Callable[[ModuleType, Mapping[str, int], Any, DataSpec], Any]
"""``build(library's module, architecture, options, data) -> torch.nn.Module``."""


@dataclass(frozen=True)
class Peer:
    """Where PyTorch's version of a family comes from.

    Attributes:
        library: Package on the package index.
        module: Import path of what has the classes.
        build: Makes the network.
        is_convolutional: Whether its tensors should lie in memory as ``[B, H, W, C]``, which suits
            convolutions.
    """

    library: str
    module: str
    build: Build
    is_convolutional: bool = False


def _vit(vit: ModuleType, sizes: Mapping[str, int], options: VitOptions, data: DataSpec) -> Any:
    gelu = importlib.import_module("torch.nn").GELU
    return vit.VisionTransformer(
        data.image_size,
        options.patch_size,
        data.channels,
        data.num_classes,
        embed_dim=sizes["dim"],
        depth=sizes["depth"],
        num_heads=sizes["heads"],
        mlp_ratio=sizes["mlp"] / sizes["dim"],
        act_layer=gelu if options.gelu == "exact" else partial(gelu, approximate="tanh"),
        pos_drop_rate=options.dropout,
        proj_drop_rate=options.dropout,
        attn_drop_rate=options.attention_dropout,
    )


def _swin(swin: ModuleType, sizes: Mapping[str, int], options: SwinOptions, data: DataSpec) -> Any:
    return swin.SwinTransformer(
        data.image_size,
        options.patch_size,
        data.channels,
        data.num_classes,
        embed_dim=sizes["dim"],
        depths=(2, 2, sizes["depth"], 2),
        num_heads=tuple(sizes["heads"] * multiple for multiple in (1, 2, 4, 8)),
        window_size=options.window_size,
        proj_drop_rate=options.dropout,
        attn_drop_rate=options.attention_dropout,
        drop_path_rate=options.drop_path,
    )


def _cait(cait: ModuleType, sizes: Mapping[str, int], options: CaitOptions, data: DataSpec) -> Any:
    return cait.Cait(
        data.image_size,
        options.patch_size,
        data.channels,
        data.num_classes,
        embed_dim=sizes["dim"],
        depth=sizes["depth"],
        num_heads=sizes["heads"],
        pos_drop_rate=options.dropout,
        proj_drop_rate=options.dropout,
        attn_drop_rate=options.attention_dropout,
        drop_path_rate=options.drop_path,
    )


def _resnet(
    resnet: ModuleType, sizes: Mapping[str, int], options: ResnetOptions, data: DataSpec
) -> Any:
    nn = importlib.import_module("torch.nn")
    block = resnet.Bottleneck if sizes["depth"] >= 50 else resnet.BasicBlock
    model = resnet.ResNet(block, list(RESNET_STAGES[sizes["depth"]]), num_classes=data.num_classes)
    if options.stem == "cifar":
        model.conv1 = nn.Conv2d(data.channels, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return model


def _vgg(vgg: ModuleType, sizes: Mapping[str, int], options: VggOptions, data: DataSpec) -> Any:
    nn = importlib.import_module("torch.nn")
    layers: list[int | str] = []
    for convolutions, multiple in zip(VGG_STAGES[sizes["depth"]], VGG_WIDTHS, strict=True):
        layers += [multiple * sizes["width"]] * convolutions + ["M"]
    features = vgg.make_layers(layers, batch_norm=bool(sizes["batch_norm"]))
    model = vgg.VGG(features, num_classes=data.num_classes, dropout=options.dropout)
    model.avgpool = nn.Identity()  # it would blow a 1 x 1 map up to 7 x 7
    side = data.image_size // 2 ** len(VGG_WIDTHS)
    model.classifier[0] = nn.Linear(8 * sizes["width"] * side**2, sizes["hidden"])
    return model


PEERS: dict[str, Peer] = {
    "vit": Peer("timm", "timm.models.vision_transformer", _vit),
    "swin": Peer("timm", "timm.models.swin_transformer", _swin),
    "cait": Peer("timm", "timm.models.cait", _cait),
    "resnet": Peer("torchvision", "torchvision.models.resnet", _resnet, is_convolutional=True),
    "vgg": Peer("torchvision", "torchvision.models.vgg", _vgg, is_convolutional=True),
}
"""By family; WideResNet, Shake-Shake and PyramidNet are in neither library."""
