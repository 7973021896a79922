"""What is read from programs that are compiled for TPU slices that are not here."""

from __future__ import annotations

from gnpcli.cluster.costs import Collectives, collectives_of


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
