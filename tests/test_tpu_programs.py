"""Steps compiled for TPU slices that are not here, and what is read from such programs."""

from __future__ import annotations

import pytest

from gnpcli.cluster.costs import Collectives, collectives_of
from gnpcli.models.registry import MODELS
from gnpcli.recipes.presets import preset_names, resolve
from tests.shallow import family
from tests.tpu import needs_libtpu
from tests.tpu_programs import compiled, operations_of

FAMILIES = sorted({entry.family for entry in MODELS.values()})
CHIP = 16e9
"""Bytes of memory of a v5e."""


def preset_of(name: str) -> str:
    """Return the first preset of a family."""
    return next(preset for preset in preset_names() if family(resolve(preset).model.name) == name)


def test_a_collective_beside_arithmetic_counts_once():
    text = """
%fused_computation.1 (param_0.1: bf16[64,128]) -> bf16[4096,128] {
  %all-gather.1 = bf16[4096,128]{1,0:T(8,128)(2,1)} all-gather(%param_0.1), channel_id=10
}

%async_collective_fusion.2 (param_0.2: bf16[64,128]) -> bf16[4096,128] {
  %all-gather.2 = bf16[4096,128]{1,0} all-gather(%param_0.2), dimensions={0}, channel_id=10
}

%all-reduce-scatter.3 (input.1: bf16[4096,128]) -> bf16[1120,128] {
  %all-reduce.1 = bf16[4480,128]{1,0} all-reduce(%pad.1), channel_id=19, to_apply=%add
}

ENTRY %main.4_spmd (param: f32[8]) -> f32[8] {
  %given = f32[64]{0} fusion(%param), kind=kLoop
  %both = (f32[16]{0}, f32[32]{0}) all-gather(%c, %d), channel_id=8, dimensions={0}
  %shift.1 = (s32[7]{0}, s32[7]{0}, u32[]{:S(2)}) collective-permute-start(%a), channel_id=1
  %shift.2 = s32[7]{0} collective-permute(%b), channel_id=1
  ROOT %part = f32[8]{0} reduce-scatter(%given), channel_id=7, dimensions={0}
}
"""
    assert collectives_of(text) == {
        "all-gather": Collectives(2, 2 * 4096 * 128 + 4 * (16 + 32)),
        "reduce-scatter": Collectives(2, 2 * 4480 * 128 + 4 * 64),
        "collective-permute": Collectives(2, 2 * 4 * 7),
    }


def test_operations_are_read_from_a_compiled_program():
    text = """
  %data = u8[50000,3072]{1,0:T(8,128)(4,1)} parameter(3), sharding={replicated}
  %same = u8[153600000]{0:T(1024)(128)(4,1)} bitcast(%data)
  %turned = u8[50000,3072]{0,1:T(8,128)(4,1)} copy(%data)
  ROOT %few = bf16[64,3072]{1,0:T(8,128)(2,1)S(1)} fusion(%data, %order), kind=kLoop
"""
    assert operations_of(text, 50000 * 3072) == ["copy"]


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_of_each_family_is_compiled_for_a_tpu(name: str):
    settings = ("train.dtype=bfloat16", "data.name=cifar10", "data.image_size=null")
    found = compiled(preset_of(name), "gnp", "v5e:2x2", settings, tiny=True)
    assert found.flops > 0.3 * found.counted
    assert found.arguments + found.temporaries < CHIP
    assert found.moved == [], "the data set is copied"
    # The gradient of either pass is summed over the chips, and nothing that is whole is gathered.
    assert found.collectives["all-reduce"]["bytes"] > 0
    assert "all-gather" not in found.collectives


@needs_libtpu
@pytest.mark.slow
def test_a_split_state_is_gathered_on_a_slice_of_several_hosts():
    chips = 64
    settings = ("model.name=tests.wide:broad", "mesh.shard=fsdp", "data.batch_size=1024")
    found = compiled("vit-nano-digits", "gnp", "v5e:8x8", settings)
    assert found.split > 0.95 * found.state
    # What is small of the state lies on every chip, and so do the images, their rows filled up.
    rest = found.arguments - (found.state - found.split)
    assert found.split / chips <= rest < 1.1 * found.split / chips + 4 * found.data
    # Two kernels are gathered for the forward and for the backward part of either pass. Shares of
    # fewer than eight rows are gathered by a sum.
    gathers = 2 * 2 * 2
    assert found.collectives["all-gather"]["bytes"] >= gathers * 2 * 4096**2
    assert found.collectives["all-gather"]["count"] <= gathers
