"""A preset's steps beside the same network in PyTorch: a module of timm or torchvision under a loop
of PyTorch's parts.

PyTorch, torchvision and timm come with the optional extra ``parity``.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from types import ModuleType
from typing import Any

import jax
import numpy as np

from gnpcli.bench.steps import Report, Rounds, compile_steps, interleave, random_images, regularized
from gnpcli.config import RunConfig
from gnpcli.config.schema import ModelConfig
from gnpcli.data.base import DataSpec
from gnpcli.devices.process import describe_environment
from gnpcli.errors import ConfigError
from gnpcli.models.families.resnet import STAGES as RESNET_STAGES
from gnpcli.models.families.vgg import STAGES as VGG_STAGES
from gnpcli.models.families.vgg import WIDTHS as VGG_WIDTHS
from gnpcli.models.registry import build_for, find_model, resolve_model

Build = Callable[[ModuleType, Mapping[str, int], ModelConfig, DataSpec], Any]
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


def _vit(vit: ModuleType, sizes: Mapping[str, int], options: ModelConfig, data: DataSpec) -> Any:
    gelu = importlib.import_module("torch.nn").GELU
    return vit.VisionTransformer(
        data.image_size, options.patch_size, data.channels, data.num_classes,
        embed_dim=sizes["dim"], depth=sizes["depth"], num_heads=sizes["heads"], mlp_ratio=sizes["mlp"] / sizes["dim"],
        act_layer=gelu if options.gelu == "exact" else partial(gelu, approximate="tanh"),
        pos_drop_rate=options.dropout, proj_drop_rate=options.dropout, attn_drop_rate=options.attention_dropout,
    )  # fmt: skip


def _swin(swin: ModuleType, sizes: Mapping[str, int], options: ModelConfig, data: DataSpec) -> Any:
    return swin.SwinTransformer(
        data.image_size, options.patch_size, data.channels, data.num_classes,
        embed_dim=sizes["dim"], depths=(2, 2, sizes["depth"], 2),
        num_heads=tuple(sizes["heads"] * multiple for multiple in (1, 2, 4, 8)), window_size=options.window_size,
        proj_drop_rate=options.dropout, attn_drop_rate=options.attention_dropout, drop_path_rate=options.drop_path,
    )  # fmt: skip


def _cait(cait: ModuleType, sizes: Mapping[str, int], options: ModelConfig, data: DataSpec) -> Any:
    return cait.Cait(
        data.image_size, options.patch_size, data.channels, data.num_classes,
        embed_dim=sizes["dim"], depth=sizes["depth"], num_heads=sizes["heads"],
        pos_drop_rate=options.dropout, proj_drop_rate=options.dropout, attn_drop_rate=options.attention_dropout,
        drop_path_rate=options.drop_path,
    )  # fmt: skip


def _resnet(
    resnet: ModuleType, sizes: Mapping[str, int], options: ModelConfig, data: DataSpec
) -> Any:
    nn = importlib.import_module("torch.nn")
    block = resnet.Bottleneck if sizes["depth"] >= 50 else resnet.BasicBlock
    model = resnet.ResNet(block, list(RESNET_STAGES[sizes["depth"]]), num_classes=data.num_classes)
    if options.stem == "cifar":
        model.conv1 = nn.Conv2d(data.channels, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return model


def _vgg(vgg: ModuleType, sizes: Mapping[str, int], options: ModelConfig, data: DataSpec) -> Any:
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


def bench_peer(
    config: RunConfig, *, is_compiled: bool, rounds: int, steps: int, report: Report
) -> dict[str, Any]:
    """Measure a configuration's plain and GNP steps beside those of the same network in PyTorch,
    interleaved.

    Ours are those of `gnpcli.bench.steps.bench`, feed and augmentation included. PyTorch's get one
    batch that lies ready in float32, which favours them: gradient (for GNP two, with the
    perturbation between them by `torch._foreach_*`), clipping, the optimizer in its fused form,
    which does L2 too. Both run in this process, one after the other.

    Args:
        config: As in `gnpcli.bench.steps.bench`.
        is_compiled: Whether PyTorch's network goes through `torch.compile`.
        rounds: Rounds counted, after one that is not.
        steps: Steps of each kind in a round.
        report: Told what is being done.

    Returns:
        JSON-able: the sizes, `environment`, `peer` (versions of its libraries), `is_compiled`,
        `torch_threads`, `difference` (the largest difference of the two networks' logits with the
        same weights in eval mode, over the largest logit: that they are the same network), and
        `measurements` for ``plain`` and ``gnp`` with `images_per_s`, `step_ms`,
        `torch_images_per_s`, `torch_step_ms`, `times_as_fast` (PyTorch's time over ours, the median
        of the ratios within a round), `times_as_fast_min` and `times_as_fast_max`, and
        `cpu_times_as_fast`, the same of processor time (null on an accelerator).

    Raises:
        ConfigError: The libraries have no such model or optimizer, or are not installed.
        DataError: As `gnpcli.bench.steps.random_images`.
    """
    config = regularized(config)
    peer = _find_peer(config)
    try:
        torch, library = importlib.import_module("torch"), importlib.import_module(peer.module)
    except ImportError as error:
        raise ConfigError(
            f"comparing needs PyTorch: pip install 'gnp[parity]' ({error})"
        ) from error
    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        raise ConfigError(
            "jax has an accelerator here and PyTorch has not: install a build of PyTorch that has"
        )
    images, spec = random_images(config)
    torch.manual_seed(config.train.seed)
    model = resolve_model(config.model)
    network = peer.build(library, find_model(model.name).architecture, model, spec)
    difference = _difference(torch, network, config, spec)
    batch = images.images[: config.data.batch_size].astype(np.float32) / 255
    batch = (
        (batch - np.asarray(spec.mean, np.float32)) / np.asarray(spec.std, np.float32)
    ).transpose(0, 3, 1, 2)
    labels = images.labels[: config.data.batch_size].astype(np.int64)
    kinds: dict[str, Rounds] = {}

    def add(name: str, alpha: float) -> None:
        kinds[name] = TorchSteps(
            torch,
            network,
            config,
            batch,
            labels,
            alpha=alpha,
            is_compiled=is_compiled,
            nhwc=peer.is_convolutional,
        )

    add("torch plain", 0.0)
    add("torch gnp", config.gr.alpha or 0.0)
    own = compile_steps(config, report)
    interleave([*own.values(), *kinds.values()], rounds=rounds, steps=steps, report=report)
    return {
        "model": config.model.name,
        "batch_size": config.data.batch_size,
        "dtype": config.train.dtype,
        "optimizer": config.optimizer.name,
        "peer": {name: metadata.version(name) for name in ("torch", peer.library)},
        "is_compiled": is_compiled,
        "torch_threads": torch.get_num_threads(),
        "difference": difference,
        "rounds": rounds,
        "steps_per_round": steps,
        "measurements": [
            _compared(name, own[name], kinds[f"torch {name}"], config) for name in own
        ],
        "environment": describe_environment(),
    }


def _compared(name: str, own: Rounds, other: Rounds, config: RunConfig) -> dict[str, Any]:
    ratios = other.ratios(own)
    return {
        "name": name,
        "images_per_s": config.data.batch_size / own.step_s,
        "step_ms": 1e3 * own.step_s,
        "torch_images_per_s": config.data.batch_size / other.step_s,
        "torch_step_ms": 1e3 * other.step_s,
        "times_as_fast": other.over(own),
        "times_as_fast_min": min(ratios),
        "times_as_fast_max": max(ratios),
        "cpu_times_as_fast": other.cpu_over(own) if jax.default_backend() == "cpu" else None,
    }


def _find_peer(config: RunConfig) -> Peer:
    family = find_model(config.model.name).family
    if family not in PEERS or resolve_model(config.model).variant == "upstream":
        raise ConfigError(
            f"neither timm nor torchvision has {config.model.name}; they have the families "
            f"{', '.join(PEERS)}",
            key="model.name",
        )
    if config.optimizer.name not in ("adamw", "sgd"):
        raise ConfigError(
            f"the comparison knows adamw and sgd, not {config.optimizer.name}", key="optimizer.name"
        )
    return PEERS[family]


def _difference(torch: ModuleType, network: Any, config: RunConfig, spec: DataSpec) -> float:
    """Return the largest difference of the logits of both networks with the same weights, over the
    largest logit.
    """
    images = np.random.default_rng(1).normal(
        size=(2, spec.image_size, spec.image_size, spec.channels)
    )
    images = images.astype(np.float32)
    with torch.no_grad():
        wanted = network.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    family = importlib.import_module(find_model(config.model.name).module)
    params, state = family.from_torch(
        {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    )
    train = config.train.model_copy(update={"dtype": "float32"})
    model = build_for(config.model_copy(update={"train": train}), spec)
    logits = jax.jit(model.apply, static_argnames="train")(
        params, state, images, train=False, key=None
    )[0]
    return float(np.abs(np.asarray(logits) - wanted).max() / np.abs(wanted).max())


class TorchSteps(Rounds):
    """Training steps of a PyTorch network on one batch."""

    def __init__(
        self, torch: ModuleType, network: Any, config: RunConfig, images: np.ndarray, labels: np.ndarray,
        *, alpha: float, is_compiled: bool, nhwc: bool,
    ):  # fmt: skip
        """Copy the network, and make its optimizer.

        Args:
            torch: The package.
            network: Stays as it is.
            config: Optimizer, clipping, label smoothing, compute type and r.
            images: float32 ``[B, C, H, W]``, normalised.
            labels: int64 ``[B]``.
            alpha: GNP's weight of the perturbed gradient, 0 for plain steps.
            is_compiled: Whether the network goes through `torch.compile`.
            nhwc: Whether images and weights lie in memory as ``[B, H, W, C]``.
        """
        super().__init__()
        device = "cuda" if jax.default_backend() == "gpu" else "cpu"
        layout = torch.channels_last if nhwc else torch.contiguous_format
        network = copy.deepcopy(network).train().to(device, memory_format=layout)
        self._parameters = list(network.parameters())
        self._network = torch.compile(network) if is_compiled else network
        self._images = torch.from_numpy(np.ascontiguousarray(images)).to(
            device, memory_format=layout
        )
        self._labels = torch.from_numpy(labels).to(device)
        self._optimizer = _optimizer(torch, self._parameters, config)
        self._loss = torch.nn.CrossEntropyLoss(label_smoothing=config.train.label_smoothing)
        self._autocast = partial(
            torch.autocast, device, dtype=torch.bfloat16, enabled=config.train.dtype == "bfloat16"
        )
        self._torch, self._r, self._alpha, self._clip = (
            torch,
            config.gr.r,
            alpha,
            config.train.clip_norm,
        )

    def _gradient(self) -> list[Any]:
        for parameter in self._parameters:
            parameter.grad = None
        with self._autocast():
            loss = self._loss(self._network(self._images), self._labels)
        loss.backward()
        return [parameter.grad for parameter in self._parameters]

    def _step(self) -> None:
        torch = self._torch
        grads = self._gradient()
        if self._alpha:
            with torch.no_grad():
                moves = torch._foreach_mul(grads, self._r / torch.nn.utils.get_total_norm(grads))
                torch._foreach_add_(self._parameters, moves)
            perturbed = self._gradient()
            with torch.no_grad():
                torch._foreach_sub_(self._parameters, moves)
                torch._foreach_lerp_(
                    perturbed, grads, 1 - self._alpha
                )  # which are the parameters' gradients
        if self._clip is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self._optimizer.step()

    def _work(self, steps: int) -> int:
        for _ in range(steps):
            self._step()
        return steps

    def _wait(self) -> None:
        if self._torch.cuda.is_available():
            self._torch.cuda.synchronize()


def _optimizer(torch: ModuleType, parameters: Sequence[Any], config: RunConfig) -> Any:
    optimizer = config.optimizer
    decays = [p for p in parameters if config.train.decay_biases_and_norms or p.ndim > 1]
    others = [p for p in parameters if not any(p is decaying for decaying in decays)]
    groups = [
        {"params": group, "weight_decay": decay}
        for group, decay in ((decays, optimizer.weight_decay + config.train.l2), (others, 0.0))
        if group
    ]
    if optimizer.name == "adamw":
        betas = (optimizer.b1, optimizer.b2)
        return torch.optim.AdamW(
            groups, lr=optimizer.lr, betas=betas, eps=optimizer.eps, fused=True
        )
    return torch.optim.SGD(
        groups,
        lr=optimizer.lr,
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov,
        fused=True,
    )
