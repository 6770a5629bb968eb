"""MobileNetV1, MobileNetV2 and AlexNet, layer by layer: what the pruning and quantisation spaces vary.

A layer is a convolution, a pool or a classifier, not a whole block: pruning and bits are chosen for each. The adds of
MobileNetV2's residuals are in no layer.
Sources: Howard et al., MobileNets, 2017, table 1; Sandler et al., MobileNetV2, CVPR 2018, table 2; Krizhevsky, One
weird trick for parallelizing convolutional neural networks, 2014 (AlexNet as one column).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from lutbuilder.op import OpKind, OpSpec
from lutbuilder.spaces.shapes import CLASSES, strided

RESOLUTION = 224
STEM = 32  # of both MobileNets
_V1_PAIRS = (  # (width of the pointwise convolution, stride of the depthwise one before it)
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1),
    (1024, 2), (1024, 1),
)  # fmt: skip  # one network, two lines
_V2_EXPAND = 6
_V2_FIRST = 16
_V2_GROUPS = ((24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))  # width, blocks, first stride
_V2_LAST = 1280
ALEXNET_FC = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Width:
    """Channels between layers: `full` of them, and the variable that prunes them; "" where nothing does."""

    variable: str = ""
    full: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer of a network of convolutions; `extent` is its input map, 1 where a vector comes in."""

    name: str
    stage: str
    kind: OpKind = "conv"
    before: Width
    after: Width
    extent: int
    kernel: int = 1
    stride: int = 1
    padding: int = -1
    depthwise: bool = False
    act: str = "none"

    def op(self, in_channels: int, out_channels: int, batch: int) -> OpSpec:
        """Return this layer at these widths."""
        groups = in_channels if self.depthwise else 1
        return _op(
            self.kind, in_channels, out_channels, self.extent, self.kernel, self.stride, self.padding, groups, self.act,
            batch,
        )  # fmt: skip  # one shape, one line

    def full_op(self, batch: int) -> OpSpec:
        """Return this layer unpruned."""
        return self.op(self.before.full, self.after.full, batch)


@lru_cache(maxsize=65_536)
def _op(
    kind: OpKind,
    in_channels: int,
    out_channels: int,
    extent: int,
    kernel: int,
    stride: int,
    padding: int,
    groups: int,
    act: str,
    batch: int,
) -> OpSpec:
    return OpSpec(
        kind=kind, in_channels=in_channels, out_channels=out_channels, height=extent, width=extent, kernel=kernel,
        stride=stride, padding=padding, groups=groups, act=act, batch=batch,
    )  # fmt: skip  # one shape, one line


def mobilenet_v1() -> tuple[Layer, ...]:
    """Return its 28 layers, 568,740,352 MACs; widths w0 (stem) and w1 to w13 (pointwise)."""
    stem = Width(variable="w0", full=STEM)
    layers = [_stem(stem, "relu")]
    before, extent, stage = stem, strided(RESOLUTION, 2), 1
    for number, (full, stride) in enumerate(_V1_PAIRS, start=1):
        after = Width(variable=f"w{number}", full=full)
        stage += stride - 1
        where = f"stage {stage}"
        layers.append(
            Layer(
                name=f"dw{number}", stage=where, before=before, after=before, extent=extent, kernel=3, stride=stride,
                depthwise=True, act="relu",
            )
        )  # fmt: skip  # one layer, two lines
        extent = strided(extent, stride)
        layers.append(Layer(name=f"pw{number}", stage=where, before=before, after=after, extent=extent, act="relu"))
        before = after
    return (*layers, _logits(before, extent))


def mobilenet_v2() -> tuple[Layer, ...]:
    """Return its 53 layers, 300,774,272 MACs; widths w0 (stem), m2 to m17 (middles of blocks), w1 to w8.

    The blocks of a residual group share one output width (w1 to w7); w8 is that of the last convolution.
    """
    stem, first = Width(variable="w0", full=STEM), Width(variable="w1", full=_V2_FIRST)
    extent = strided(RESOLUTION, 2)
    layers = [
        _stem(stem, "relu6"),
        Layer(
            name="dw1", stage="stage 1", before=stem, after=stem, extent=extent, kernel=3, depthwise=True, act="relu6"
        ),
        Layer(name="project1", stage="stage 1", before=stem, after=first, extent=extent),
    ]
    before, block = first, 1
    for group, (full, blocks, first_stride) in enumerate(_V2_GROUPS, start=2):
        after, where = Width(variable=f"w{group}", full=full), f"stage {group}"
        for position in range(blocks):
            block += 1
            stride = first_stride if position == 0 else 1
            mid = Width(variable=f"m{block}", full=_V2_EXPAND * before.full)
            layers += [
                Layer(name=f"expand{block}", stage=where, before=before, after=mid, extent=extent, act="relu6"),
                Layer(
                    name=f"dw{block}", stage=where, before=mid, after=mid, extent=extent, kernel=3, stride=stride,
                    depthwise=True, act="relu6",
                ),
                Layer(
                    name=f"project{block}", stage=where, before=mid, after=after, extent=strided(extent, stride)
                ),
            ]  # fmt: skip  # one block, three layers
            before, extent = after, strided(extent, stride)
    last = Width(variable="w8", full=_V2_LAST)
    head = Layer(name="head", stage="head", before=before, after=last, extent=extent, act="relu6")
    return (*layers, head, _logits(last, extent))


def alexnet() -> tuple[Layer, ...]:
    """Return its five convolutions, three pools and three fully connected layers; widths w1 to w7."""
    widths = [Width(full=3)]
    widths += [Width(variable=f"w{n}", full=f) for n, f in enumerate((64, 192, 384, 256, 256, *[ALEXNET_FC] * 2), 1)]
    layers: list[Layer] = []
    extent = RESOLUTION
    for number, (kernel, stride, padding, pooled) in enumerate(
        ((11, 4, 2, True), (5, 1, -1, True), (3, 1, -1, False), (3, 1, -1, False), (3, 1, -1, True)), start=1
    ):
        conv = Layer(
            name=f"conv{number}", stage="features", before=widths[number - 1], after=widths[number], extent=extent,
            kernel=kernel, stride=stride, padding=padding, act="relu",
        )  # fmt: skip  # one layer, two lines
        layers.append(conv)
        extent = conv.full_op(1).out_height
        if pooled:
            pool = Layer(
                name=f"pool{number}", stage="features", kind="max_pool", before=conv.after, after=conv.after,
                extent=extent, kernel=3, stride=2, padding=0,
            )  # fmt: skip  # one layer, two lines
            layers.append(pool)
            extent = pool.full_op(1).out_height
    layers += [
        Layer(
            name="fc1", stage="classifier", kind="linear", before=widths[5], after=widths[6], extent=extent, act="relu"
        ),
        Layer(name="fc2", stage="classifier", kind="linear", before=widths[6], after=widths[7], extent=1, act="relu"),
    ]
    return (*layers, _logits(widths[7], 1, stage="classifier"))


def _stem(after: Width, act: str) -> Layer:
    return Layer(
        name="stem", stage="stem", before=Width(full=3), after=after, extent=RESOLUTION, kernel=3, stride=2, act=act
    )


def _logits(before: Width, extent: int, *, stage: str = "head") -> Layer:
    return Layer(name="logits", stage=stage, kind="logits", before=before, after=Width(full=CLASSES), extent=extent)
