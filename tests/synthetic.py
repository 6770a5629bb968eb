"""The synthetic table that the golden sums of the search-space page are stated for: 0.01 ms an op, 1e8 MACs a ms."""

from __future__ import annotations

from lutbuilder.nas.compiled import FunctionTable
from lutbuilder.op import OpSpec


def weight_macs(op: OpSpec) -> int:
    """MACs of convolution and fully connected weights alone: no bias, squeeze-excite, shortcut or pool; batch 1."""
    inside, outside = op.height * op.width, op.out_height * op.out_width
    if op.kind == "conv":
        return outside * op.kernel**2 * op.in_channels * op.out_channels // op.groups
    if op.kind == "linear":
        return inside * op.in_channels * op.out_channels
    if op.kind == "logits":
        return op.in_channels * op.out_channels
    if op.kind not in ("mbconv", "bottleneck"):
        return 0
    expands = op.kind == "bottleneck" or op.expand_conv or op.mid_channels != op.in_channels
    first = inside * op.in_channels * op.mid_channels // op.groups if expands else 0
    middle = outside * op.kernel**2 * op.mid_channels * (op.mid_channels if op.kind == "bottleneck" else 1)
    return first + middle + outside * op.mid_channels * op.out_channels // op.groups


def synthetic_ms(op: OpSpec) -> float:
    """What the synthetic table says of an op."""
    return 0.01 + weight_macs(op) / 1e8


SYNTHETIC = FunctionTable(name="synthetic", cost=synthetic_ms)
