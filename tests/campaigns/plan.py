"""``python -m tests.campaigns.plan here|published``: the estimates of ``gnp plan``, checked.

``here`` compares the estimate for this CPU with ``gnp bench``, for six models. Each number is
measured alone, one after another, so nothing else may run: it takes about ten minutes on two quiet
cores. ``published`` compares the estimate with the speed of public runs, of which a source tells
chip, batch and images a second. It measures nothing, and takes about five minutes.

Printed is the time that was measured over the time of the estimate, and the geometric mean.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from gnpcli.cluster.chips import Chip, Machine, find_machine
from gnpcli.cluster.planning import plan_run
from gnpcli.recipes.presets import resolve

HERE = (
    ("vit-nano", "data.batch_size=64"),
    ("vit-ti", "data.batch_size=32", "model.patch_size=2"),
    ("wrn-16-4", "data.batch_size=32"),
    ("resnet18", "data.batch_size=32"),
    ("swin-t", "data.batch_size=16", "data.image_size=32"),
    ("vgg16-bn", "data.batch_size=32", "data.image_size=32"),
)
"""Models and settings that a CPU trains in tenths of a second a step."""


@dataclass(frozen=True)
class Public:
    """A public run."""

    source: str
    machine: Machine
    model: str
    batch_size: int
    images_per_s: float
    dtype: str = "bfloat16"
    """Mixed precision of some kind, or float32 with the products in TF32."""


TIMM = "https://github.com/huggingface/pytorch-image-models/blob/main/results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv"
DLE = "https://github.com/NVIDIA/DeepLearningExamples/tree/master/PyTorch/Classification/ConvNets/resnet50v1.5"
PLSC = "https://github.com/PaddlePaddle/PLSC/tree/master/task/classification/vit"
BIG_VISION = (
    "https://github.com/google-research/big_vision/blob/main/big_vision/configs/vit_s16_i1k.py"
)
V3 = Chip(
    "v3",
    "TPU v3",
    "gpu",  # counted, as libtpu does not compile for it
    {"bfloat16": 123e12},
    32e9,
    900e9,
    100e9,
    ("https://cloud.google.com/tpu/docs/v3",),
)
RTX, A100 = find_machine("rtx3090:1"), find_machine("a100:1")

PUBLISHED = (
    Public(TIMM, RTX, "vit-ti", 512, 2299.56),
    Public(TIMM, RTX, "vit-s", 384, 1057.92),
    Public(TIMM, RTX, "vit-b", 192, 392.99),
    Public(TIMM, RTX, "swin-t", 256, 648.69),
    Public(TIMM, RTX, "resnet50", 512, 1218.01),
    Public(TIMM, RTX, "vgg16-bn", 256, 470.3),
    Public(DLE, A100, "resnet50", 256, 2470),
    Public(DLE, A100, "resnet50", 256, 938, "float32"),
    Public(PLSC, find_machine("a100:8"), "vit-b", 4096, 3583),
    # 90 epochs of 1,268,355 images (99 %) in 6 to 7 hours on 4 chips
    Public(BIG_VISION, Machine("v3-8", V3, 4), "vit-s", 1024, 90 * 1_268_355 / (6.5 * 3600)),
)


def main() -> None:
    """Compare, and print."""
    known = {"here": here, "published": published}
    if len(sys.argv) != 2 or sys.argv[1] not in known:
        sys.exit(__doc__)
    ratios = known[sys.argv[1]]()
    mean = statistics.geometric_mean(ratios)
    print(f"measured / estimate: {min(ratios):.2f} to {max(ratios):.2f}, geometric mean {mean:.2f}")


def here() -> list[float]:
    """Return measured over estimated time of the plain and the GNP step of the models."""
    ratios = []
    for name, *settings in HERE:
        options = [f"--set=model.name={name}", *(f"--set={setting}" for setting in settings)]
        plan = _gnp("plan", "--on", "cpu", *options, "--gr", "constant", "--set=gr.every=2")
        bench = _gnp("bench", *options)
        step_s = {step["kind"]: step["step_s"] for step in plan["steps"]}
        for measured in bench["measurements"]:
            estimate_ms = 1e3 * step_s[measured["name"]]
            ratio = measured["step_ms"] / estimate_ms
            print(
                f"{name} {measured['name']}: measured {measured['step_ms']:.1f} ms, "
                f"estimate {estimate_ms:.1f} ms, ratio {ratio:.2f}",
                flush=True,
            )
            ratios.append(ratio)
    return ratios


def _gnp(*arguments: str) -> Any:
    strength = ("--set=gr.r=0.1", "--set=gr.alpha=0.8")
    command = [sys.executable, "-c", "from gnpcli.cli import main; main()", *arguments, *strength]
    done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def published() -> list[float]:
    """Return published over estimated time of a plain step."""
    ratios = []
    for run in PUBLISHED:
        preset = "resnet50-imagenet" if run.model == "resnet50" else "vit-s-imagenet"
        plan = plan_run(resolve(preset, _settings(run)), run.machine, lambda text: None)
        time = plan.times["plain"]
        ratio = run.batch_size / run.images_per_s / time.total_s
        print(
            f"{run.machine.name} {run.model} {run.dtype} batch {run.batch_size}: published "
            f"{run.images_per_s:,.0f} images/s, estimate {run.batch_size / time.total_s:,.0f} "
            f"(bound by {time.bound}; arithmetic {1e3 * time.compute_s:.1f} ms, memory "
            f"{1e3 * time.memory_s:.1f} ms, links {1e3 * time.links_s:.1f} ms), ratio {ratio:.2f}",
            flush=True,
        )
        ratios.append(ratio)
    return ratios


def _settings(run: Public) -> list[str]:
    settings = [
        f"model.name={run.model}",
        f"data.batch_size={run.batch_size}",
        f"train.dtype={run.dtype}",
        "gr.strategy=none",
    ]
    if run.model != "resnet50":
        settings.append("model.dropout=0")
    if run.model.startswith("vit"):
        settings.append("model.attention_dropout=0")
    if run.model == "swin-t":
        settings += ["model.patch_size=4", "model.window_size=7"]
    return settings


if __name__ == "__main__":
    main()
