"""The key grammar of the ProxylessNAS line of tables: one text says type and shapes of an op. Both ways.

    TYPE-input:SHAPE-output:SHAPE[-expand:N-kernel:N-stride:N-idskip:0|1[-se:0|1-hs:0|1]]

`expand` has two meanings: in tables without squeeze-excite (form `ratio`) how many times the channels expand, in those
with it (form `mid`) how many channels there are in the middle. A table is of one form; a number never decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal

from lutbuilder.lut.interchange.source import Malformed
from lutbuilder.op import OpSpec, make_divisible
from lutbuilder_agent.errors import SpecError

Form = Literal["ratio", "mid"]
Shape = tuple[int, int, int]  # rows, columns, channels

GREATEST_RATIO = 16
_RATIOS = range(1, 9)
_N = "[1-9][0-9]{0,6}"
_MAP = f"{_N}x{_N}x{_N}"
_KEY = re.compile(
    rf"(?P<type>[A-Za-z][A-Za-z0-9_]*)-input:(?P<input>{_MAP})-output:(?P<output>{_MAP}|{_N})"
    rf"(?P<tail>-expand:(?P<expand>{_N})-kernel:(?P<kernel>{_N})-stride:(?P<stride>{_N})-idskip:(?P<idskip>[01])"
    r"(?P<flags>-se:(?P<se>[01])-hs:(?P<hs>[01]))?)?"
)
_BARE = re.compile(
    rf"(?P<input>{_MAP})-(?P<output>{_MAP}|{_N})(?P<tail>-expand:(?P<expand>{_N})-kernel:(?P<kernel>{_N})-stride:(?P<stride>{_N}))?"
)
_ACTS: Mapping[Form, str] = {"ratio": "relu6", "mid": "hswish"}


def parse_key(text: str, form: Form) -> OpSpec:
    """Return the op a key says, at batch 1. Raises Malformed saying what is wrong with it."""
    found = _KEY.fullmatch(text)
    if found is None:
        raise Malformed("not TYPE-input:HxWxC-output:HxWxC[-expand:N-kernel:N-stride:N-idskip:0|1[-se:0|1-hs:0|1]]")
    kind = found["type"]
    if kind == "expanded_conv":
        if found["tail"] is None or (found["flags"] is not None) != (form == "mid"):
            wanted = "-expand:N-kernel:N-stride:N-idskip:0|1" + ("-se:0|1-hs:0|1" if form == "mid" else "")
            raise Malformed(f"expanded_conv in this format ends in {wanted}; is it of another format?")
        return _block(found, form)
    plain = _PLAIN[form].get(kind)
    if plain is None:
        raise Malformed(f"unknown layer type {kind!r}; known: expanded_conv, {', '.join(_PLAIN[form])}")
    if found["tail"] is not None:
        raise Malformed(f"expand, kernel, stride and idskip go with expanded_conv, not {kind}")
    return plain(_shape(found["input"]), found["output"], _ACTS[form])


def key_of(op: OpSpec, form: Form) -> str:
    """Return the key of an op. Raises Malformed for one that no key of this form says."""
    kind = _type_of(op, form)
    last = f"{op.out_channels}" if kind == "Logits" else f"{op.out_height}x{op.out_width}x{op.out_channels}"
    key = f"{kind}-input:{op.height}x{op.width}x{op.in_channels}-output:{last}"
    if kind == "expanded_conv":
        expand = op.mid_channels if form == "mid" else op.mid_channels // op.in_channels
        key += f"-expand:{expand}-kernel:{op.kernel}-stride:{op.stride}-idskip:{int(op.residual)}"
        key += f"-se:{int(op.se)}-hs:{int(op.act == 'hswish')}" if form == "mid" else ""
    try:
        said = parse_key(key, form)
    except (Malformed, SpecError):
        said = None
    if said != op:
        raise Malformed(f"{op.label()} cannot be said by a key of this format; the nearest is {key}")
    return key


def parse_bare_key(text: str) -> OpSpec:
    """Return the op of a key without type, at batch 1: what the ratio form has of such shapes. Raises Malformed.

    With expansion, kernel and stride it is a block, with a residual where its shape allows one; without, a picture of
    three channels makes it the first convolution, an output of channels alone the classifier, else it is 1x1.
    """
    found = _BARE.fullmatch(text)
    if found is None:
        raise Malformed("not HxWxC-HxWxC[-expand:N-kernel:N-stride:N]")
    height, width, channels = _shape(found["input"])
    if found["tail"] is not None:
        residual = found["stride"] == "1" and found["output"] == found["input"]
        return parse_key(
            f"expanded_conv-input:{found['input']}-output:{found['output']}{found['tail']}-idskip:{int(residual)}",
            "ratio",
        )
    kind = "Logits" if "x" not in found["output"] else "Conv" if channels == 3 else "Conv_1"
    return parse_key(f"{kind}-input:{height}x{width}x{channels}-output:{found['output']}", "ratio")


def bare_key_of(op: OpSpec) -> str:
    """Return the key without type of an op. Raises Malformed for one that no such key says."""
    key = key_of(op, "ratio").partition("-input:")[2].replace("-output:", "-").partition("-idskip:")[0]
    if parse_bare_key(key) != op:
        raise Malformed(f"{op.label()} cannot be said by a key of this format; the nearest is {key}")
    return key


def _type_of(op: OpSpec, form: Form) -> str:
    if op.kind == "mbconv":
        return "expanded_conv"
    if op.kind == "logits":
        return "Logits"
    if op.kind == "global_pool":
        return "AvgPool2D"
    if op.kernel > 1:
        return "Conv"
    return "Conv_2" if form == "mid" and (op.height, op.width) == (1, 1) else "Conv_1"


def _shape(text: str) -> Shape:
    height, width, channels = map(int, text.split("x"))
    return height, width, channels


def _map(text: str) -> Shape:
    if "x" not in text:
        raise Malformed(f"output {text} has no map; only Logits gives channels alone")
    return _shape(text)


def _block(found: re.Match[str], form: Form) -> OpSpec:
    height, width, in_channels = _shape(found["input"])
    *extent, out_channels = _map(found["output"])
    expand, kernel, stride = (int(found[name]) for name in ("expand", "kernel", "stride"))
    if form == "ratio":
        if expand > GREATEST_RATIO:
            raise Malformed(
                f"expand {expand} is no ratio up to {GREATEST_RATIO}; are these channels, of a format with se?"
            )
        mid = in_channels * expand  # not made divisible: some tables are of widths that are multiples of 10
    else:
        if expand not in {make_divisible(in_channels * ratio) for ratio in _RATIOS}:
            raise Malformed(
                f"expand {expand} is 1 to 8 times {in_channels} channels for no whole ratio; is it a ratio?"
            )
        mid = expand
    op = OpSpec(
        kind="mbconv",
        in_channels=in_channels,
        mid_channels=mid,
        out_channels=out_channels,
        height=height,
        width=width,
        kernel=kernel,
        stride=stride,
        se=found["se"] == "1",
        act=_ACTS["ratio"] if form == "ratio" else "hswish" if found["hs"] == "1" else "relu",
        residual=found["idskip"] == "1",
    )
    if [op.out_height, op.out_width] != extent:
        left = f"{op.out_height}x{op.out_width}"
        raise Malformed(f"stride {stride} leaves {left} of {height}x{width}, not {extent[0]}x{extent[1]}")
    return op


def _stem(shape: Shape, output: str, act: str) -> OpSpec:
    height, width, in_channels = shape
    *extent, out_channels = _map(output)
    op = OpSpec(
        kind="conv", in_channels=in_channels, out_channels=out_channels, height=height, width=width, kernel=3, stride=2,
        act=act,
    )  # fmt: skip  # one shape, two lines
    if [op.out_height, op.out_width] != extent:
        left = f"{op.out_height}x{op.out_width}"
        raise Malformed(f"Conv has stride 2, which leaves {left} of {height}x{width}, not {extent[0]}x{extent[1]}")
    return op


def _pointwise(shape: Shape, output: str, act: str) -> OpSpec:
    height, width, in_channels = shape
    *extent, out_channels = _map(output)
    if [height, width] != extent:
        raise Malformed(f"a 1x1 convolution keeps its map of {height}x{width}, got {extent[0]}x{extent[1]}")
    return OpSpec(kind="conv", in_channels=in_channels, out_channels=out_channels, height=height, width=width, act=act)


def _on_one_pixel(shape: Shape, output: str, act: str) -> OpSpec:
    if shape[:2] != (1, 1):
        raise Malformed(f"Conv_2 follows the pool: its map is 1x1, not {shape[0]}x{shape[1]}")
    return _pointwise(shape, output, act)


def _pool(shape: Shape, output: str, act: str) -> OpSpec:
    height, width, channels = shape
    if _map(output) != (1, 1, channels):
        raise Malformed(f"AvgPool2D leaves 1x1x{channels}, not {output}")
    return OpSpec(kind="global_pool", in_channels=channels, out_channels=channels, height=height, width=width)


def _logits(shape: Shape, output: str, act: str) -> OpSpec:
    height, width, in_channels = shape
    if "x" in output:
        raise Malformed(f"Logits gives channels alone, not {output}")
    return OpSpec(kind="logits", in_channels=in_channels, out_channels=int(output), height=height, width=width)


def _classifier(shape: Shape, output: str, act: str) -> OpSpec:
    if shape[:2] != (1, 1):
        raise Malformed(f"Logits follows the pool in this format: its map is 1x1, not {shape[0]}x{shape[1]}")
    return _logits(shape, output, act)


_PLAIN: Mapping[Form, Mapping[str, Callable[[Shape, str, str], OpSpec]]] = {
    "ratio": {"Conv": _stem, "Conv_1": _pointwise, "Logits": _logits},
    "mid": {"Conv": _stem, "Conv_1": _pointwise, "AvgPool2D": _pool, "Conv_2": _on_one_pixel, "Logits": _classifier},
}
