"""A preset's steps beside the same network in PyTorch, under a loop of PyTorch's parts.

PyTorch, torchvision and timm come with the optional extra ``parity``.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gnpcli.bench.steps import compile_steps, random_images, regularized
from gnpcli.bench.timing import Notify, Rounds, interleave
from gnpcli.bench.torch_networks import PEERS, Peer
from gnpcli.config.optimizers import AdamWConfig, SgdConfig
from gnpcli.config.resolved import Resolved
from gnpcli.data.base import DataSpec, Split
from gnpcli.devices.mesh import is_on_cpu, make_mesh
from gnpcli.devices.process import describe_environment
from gnpcli.errors import ConfigError
from gnpcli.models.registry import build_for, find_model


def bench_peer(
    config: Resolved, *, is_compiled: bool, rounds: int, steps: int, notify: Notify
) -> dict[str, Any]:
    """Measure plain and GNP steps beside those of the same network in PyTorch, interleaved.

    Ours are those of `gnpcli.bench.steps.bench`, feed and augmentation included. PyTorch's get one
    batch that lies ready in float32, which favours them. Theirs take the gradient (for GNP two,
    with the perturbation between them by `torch._foreach_*`), clip it, and update by the optimizer
    in its fused form, which does L2 too. Both run in this process, one after the other.

    Args:
        config: As in `gnpcli.bench.steps.bench`.
        is_compiled: Whether PyTorch's network goes through `torch.compile`.
        rounds: Rounds counted, after one that is not.
        steps: Steps of each kind in a round.
        notify: Told what is being done.

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
            f"comparing needs PyTorch: pip install 'gnpcli[parity]' ({error})"
        ) from error
    device = _torch_device(torch, make_mesh(config))
    images, spec = random_images(config)
    torch.manual_seed(config.train.seed)
    model = config.model
    network = peer.build(library, find_model(model.name).sizes, model, spec)
    difference = _difference(torch, network, config, spec)
    network = network.to(device)
    batch = _first_batch(torch, images, spec, config.data.batch_size)
    theirs = {
        name: TorchSteps(
            torch,
            network,
            config,
            *batch,
            alpha=alpha,
            is_compiled=is_compiled,
            nhwc=peer.is_convolutional,
        )
        for name, alpha in (("plain", 0.0), ("gnp", config.gr.alpha))
    }
    own = compile_steps(config, images, spec, notify)
    interleave([*own.values(), *theirs.values()], rounds=rounds, steps=steps, notify=notify)
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
            {"name": name, **_compared(own[name], theirs[name], config.data.batch_size)}
            for name in own
        ],
        "environment": describe_environment(),
    }


def _torch_device(torch: ModuleType, mesh: Mesh) -> str:
    """Return PyTorch's name for the kind of device that a mesh is of.

    Raises:
        ConfigError: PyTorch cannot use it.
    """
    if is_on_cpu(mesh):
        return "cpu"
    if not torch.cuda.is_available():
        raise ConfigError(
            "jax has an accelerator here and PyTorch has not: install a build of PyTorch that has"
        )
    return "cuda"


def _first_batch(
    torch: ModuleType, images: Split, spec: DataSpec, batch_size: int
) -> tuple[Any, Any]:
    """Return normalised images, float32 ``[B, C, H, W]``, and labels, int64 ``[B]``, as tensors."""
    mean, std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
    pixels = images.images[:batch_size].astype(np.float32) / 255
    pixels = ((pixels - mean) / std).transpose(0, 3, 1, 2)
    labels = images.labels[:batch_size].astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(labels)


def _compared(own: Rounds, other: Rounds, batch_size: int) -> dict[str, Any]:
    """Return the figures of our steps and of PyTorch's."""
    ratios = other.ratios(own)
    return {
        "images_per_s": batch_size / own.step_s,
        "step_ms": 1e3 * own.step_s,
        "torch_images_per_s": batch_size / other.step_s,
        "torch_step_ms": 1e3 * other.step_s,
        "times_as_fast": other.over(own),
        "times_as_fast_min": min(ratios),
        "times_as_fast_max": max(ratios),
        "cpu_times_as_fast": other.cpu_over(own),
    }


def _find_peer(config: Resolved) -> Peer:
    family = find_model(config.model.name).family
    if family not in PEERS or getattr(config.model, "variant", None) == "upstream":
        raise ConfigError(
            f"neither timm nor torchvision has {config.model.name}; they have the families "
            f"{', '.join(PEERS)}",
            key="model.name",
        )
    if not isinstance(config.optimizer, AdamWConfig | SgdConfig):
        raise ConfigError(
            f"the comparison knows adamw and sgd, not {config.optimizer.name}", key="optimizer.name"
        )
    return PEERS[family]


def _difference(torch: ModuleType, network: Any, config: Resolved, spec: DataSpec) -> float:
    """Return how far the logits of both networks are apart with the same weights in eval mode.

    The largest difference, over the largest logit.
    """
    images = np.random.default_rng(1).normal(
        size=(2, spec.image_size, spec.image_size, spec.channels)
    )
    images = images.astype(np.float32)
    with torch.no_grad():
        wanted = network.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    family = find_model(config.model.name).load()
    params, state = family.from_torch(
        {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    )
    model = build_for(config.replaced({"train.dtype": "float32"}), spec)
    logits = jax.jit(model.apply, static_argnames="train")(
        params, state, images, train=False, key=None
    )[0]
    return float(np.abs(np.asarray(logits) - wanted).max() / np.abs(wanted).max())


class TorchSteps(Rounds):
    """Training steps of a PyTorch network on one batch, on the device that the network is on."""

    def __init__(
        self,
        torch: ModuleType,
        network: Any,
        config: Resolved,
        images: Any,
        labels: Any,
        *,
        alpha: float,
        is_compiled: bool,
        nhwc: bool,
    ):
        """Copy the network, and make its optimizer.

        Args:
            torch: The package.
            network: Stays as it is.
            config: Optimizer, clipping, label smoothing, compute type and r.
            images: Tensor float32 ``[B, C, H, W]``, normalised.
            labels: Tensor int64 ``[B]``.
            alpha: GNP's weight of the perturbed gradient, 0 for plain steps.
            is_compiled: Whether the network goes through `torch.compile`.
            nhwc: Whether images and weights lie in memory as ``[B, H, W, C]``.
        """
        super().__init__()
        device = next(network.parameters()).device
        layout = torch.channels_last if nhwc else torch.contiguous_format
        network = copy.deepcopy(network).train().to(memory_format=layout)
        self._torch, self._device = torch, device
        self._parameters = list(network.parameters())
        self._network = torch.compile(network) if is_compiled else network
        self._images = images.to(device, memory_format=layout)
        self._labels = labels.to(device)
        self._optimizer = _optimizer(torch, self._parameters, config)
        self._loss = torch.nn.CrossEntropyLoss(label_smoothing=config.train.label_smoothing)
        is_narrow = config.train.dtype == "bfloat16"
        self._autocast = partial(
            torch.autocast, device.type, dtype=torch.bfloat16, enabled=is_narrow
        )
        self._r, self._alpha = config.gr.r, alpha
        self._clip_norm = config.train.clip_norm

    @property
    def is_on_cpu(self) -> bool:
        """Whether the network is on the CPU."""
        return bool(self._device.type == "cpu")

    def _gradient(self) -> list[Any]:
        for parameter in self._parameters:
            parameter.grad = None
        with self._autocast():
            loss = self._loss(self._network(self._images), self._labels)
        loss.backward()
        return [parameter.grad for parameter in self._parameters]

    def _step(self) -> None:
        grads = self._gradient()
        if self._alpha:
            self._mix_in_perturbed(grads)
        if self._clip_norm is not None:
            self._torch.nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        self._optimizer.step()

    def _mix_in_perturbed(self, clean: list[Any]) -> None:
        """Make the parameters' gradients those of GNP."""
        torch = self._torch
        with torch.no_grad():
            steps = torch._foreach_mul(clean, self._r / torch.nn.utils.get_total_norm(clean))
            torch._foreach_add_(self._parameters, steps)
        perturbed = self._gradient()  # the parameters' own, which are mixed in place
        with torch.no_grad():
            torch._foreach_sub_(self._parameters, steps)
            torch._foreach_lerp_(perturbed, clean, 1 - self._alpha)

    def _work(self, steps: int) -> int:
        for _ in range(steps):
            self._step()
        return steps

    def _wait(self) -> None:
        if not self.is_on_cpu:
            self._torch.cuda.synchronize()


def _optimizer(torch: ModuleType, parameters: Sequence[Any], config: Resolved) -> Any:
    """Return the optimizer in its fused form."""
    optimizer = config.optimizer
    groups = _decay_groups(parameters, config)
    if isinstance(optimizer, AdamWConfig):
        betas = (optimizer.b1, optimizer.b2)
        return torch.optim.AdamW(
            groups, lr=optimizer.lr, betas=betas, eps=optimizer.eps, fused=True
        )
    assert isinstance(optimizer, SgdConfig), "no other has a peer"
    return torch.optim.SGD(
        groups,
        lr=optimizer.lr,
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov,
        fused=True,
    )


def _decay_groups(parameters: Sequence[Any], config: Resolved) -> list[dict[str, Any]]:
    """Return PyTorch's groups: the parameters that decay, and the others, where there are any."""
    decays: list[Any] = []
    others: list[Any] = []
    for parameter in parameters:
        is_matrix = parameter.ndim > 1
        (decays if config.train.decay_biases_and_norms or is_matrix else others).append(parameter)
    decay = config.optimizer.weight_decay + config.train.l2
    groups = [
        {"params": decays, "weight_decay": decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
