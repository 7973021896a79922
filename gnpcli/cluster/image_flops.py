"""FLOP of a training step for each image, counted in the traced forward pass.

A gradient costs three forward passes: the backward pass has two products for each of the forward
pass. On whole traced steps of nine networks that is right within 1 % (tests check some of them),
with `train.remat` within 10 %. A step takes five to ten times as long to trace.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp

from gnpcli.bench.steps import regularized
from gnpcli.cluster.compiling import Notify, counted
from gnpcli.cluster.counting import count
from gnpcli.cluster.keeping import keep, kept_as
from gnpcli.config.resolved import Resolved
from gnpcli.data.base import DataInfo
from gnpcli.devices import cpu
from gnpcli.devices.mesh import mesh_over
from gnpcli.models.base import initial_shapes
from gnpcli.models.registry import find_model
from gnpcli.recipes.plan import fit

GRADIENT, AGAIN = 3, 1
"""Forward passes that a gradient costs, and those more where it computes activations anew."""


@dataclass(frozen=True)
class ImageFlops:
    """FLOP an image of each kind of step."""

    plain: float
    gnp: float


def image_flops(config: Resolved, info: DataInfo, notify: Notify) -> ImageFlops:
    """Return the FLOP of plain and GNP steps of a run, an image.

    A network is traced once. The count is kept under ``counts`` in the cache folder, by the code of
    the networks; that of a network from outside this package is not.

    Args:
        config: The run.
        info: The sizes of its images.
        notify: Told what is traced.

    Raises:
        ConfigError: As `gnpcli.recipes.plan.fit`.
    """
    is_own = not find_model(config.model.name).module.startswith("gnpcli.")
    parts = _parts(config, info)
    found = None if is_own else kept_as(lambda values: ImageFlops(**values), "counts", parts)
    if found is None:
        notify(f"counting the FLOP of {config.model.name}")
        found = _count(config, info)
        if not is_own:
            keep("counts", parts, asdict(found))
    return found


def _count(config: Resolved, info: DataInfo) -> ImageFlops:
    model, _ = fit(config, info)
    shape = (info.image_size, info.image_size, info.channels)
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    with cpu.tuning(False):
        params, state = initial_shapes(model, shape)
        forward = jax.make_jaxpr(
            lambda params, state, image, key: model.apply(params, state, image, True, key)
        )(params, state, image, jax.random.key(0))
    passes = GRADIENT + AGAIN * config.train.remat
    plain = passes * count(forward).flops
    if config.gr.gradient == "finite-difference":
        return ImageFlops(plain, 2 * plain)
    whole = counted(regularized(config), "gnp", mesh_over(config, jax.local_devices()[:1]))
    return ImageFlops(plain, whole.flops / config.data.batch_size)


def _parts(config: Resolved, info: DataInfo) -> list[object]:
    """Return all that the count depends on."""
    exact = config.gr.gradient == "exact"
    return [
        _code(),
        metadata.version("jax"),
        config.model.model_dump(mode="json"),
        [info.image_size, info.channels, info.num_classes],
        [config.train.dtype, config.train.remat, config.gr.gradient],
        config.gr.model_dump(mode="json") if exact else None,
        [config.data.batch_size, config.train.accumulate] if exact else None,
    ]


@cache
def _code() -> str:
    """Return a digest of the code that is counted, and of what counts it."""
    here = Path(__file__).parent
    files = [*here.glob("*.py")]
    for room in ("models", "devices", "gnp", "step"):
        files += (here.parent / room).rglob("*.py")
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()
