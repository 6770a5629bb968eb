"""Published tables made up for tests, byte for byte in their formats, from the numbers of the papers alone.

Nothing here uses the code under test: keys are spelled out and pickles are made by pickle. Values grow with kernel and
expansion, so that no rule finds fault with them.
"""

from __future__ import annotations

import io
import json
import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

Fields = dict[str, float | int]
MBV3 = {  # stem and first block, stages, the two convolutions of the head
    "w1.0": (16, (24, 40, 80, 112, 160), 960, 1280),
    "w1.2": (24, (32, 48, 96, 136, 192), 1152, 1536),
}
PROXYLESS = (32, 16, (24, 40, 80, 96, 192, 320), 1280)
HAQ_LAYERS = 53


def half(extent: int) -> int:
    """Rows left by a stride of 2."""
    return (extent - 1) // 2 + 1


def row(ms: float, count: int = 100) -> Fields:
    """Fields of a row whose samples spread by 3 %."""
    return {"count": count, "mean": ms, "std": 0.03 * ms}


def mbv3_rows(r: int = 224, width: str = "w1.0", *, scale: float = 1.0) -> dict[str, Fields]:
    """The 96 rows of once-for-all's MobileNetV3 table at one resolution; 900 networks were run."""
    first, stages, expanded, features = MBV3[width]
    f = half(r)
    block = f"expanded_conv-input:{f}x{f}x{first}-output:{f}x{f}x{first}-expand:{first}-kernel:3-stride:1-idskip:1"
    rows = {
        f"Conv-input:{r}x{r}x3-output:{f}x{f}x{first}": row(scale * r * 0.004, 900),
        f"{block}-se:0-hs:0": row(scale * f * 0.006, 900),
    }
    channels = first
    for number, out in enumerate(stages):
        for position in range(2):
            stride = (2, 2, 2, 1, 2)[number] if position == 0 else 1
            left = half(f) if stride == 2 else f
            for kernel in (3, 5, 7):
                for ratio in (3, 4, 6):
                    key = (
                        f"expanded_conv-input:{f}x{f}x{channels}-output:{left}x{left}x{out}-expand:{channels * ratio}"
                        f"-kernel:{kernel}-stride:{stride}-idskip:{position}-se:{(0, 1, 0, 1, 1)[number]}"
                        f"-hs:{int(number > 1)}"
                    )
                    rows[key] = row(scale * (0.1 + 1e-6 * f * channels * ratio * (kernel + 3) + 1e-3 * out / 7))
            channels, f = out, left
    rows[f"Conv_1-input:{f}x{f}x{channels}-output:{f}x{f}x{expanded}"] = row(scale * f * 0.05, 900)
    rows[f"AvgPool2D-input:{f}x{f}x{expanded}-output:1x1x{expanded}"] = row(scale * f * 0.001, 900)
    rows[f"Conv_2-input:1x1x{expanded}-output:1x1x{features}"] = row(scale * 0.21, 900)
    rows[f"Logits-input:1x1x{features}-output:1000"] = row(scale * 0.3096415478615071, 900)
    return rows


def proxyless_rows(r: int = 224, *, ratios: tuple[int, ...] = (3, 4, 6), scale: float = 1.0) -> dict[str, Fields]:
    """The rows of the ProxylessNAS skeleton: 103 with three ratios, 70 with (3, 6) and one layer less."""
    stem, first, stages, head = PROXYLESS
    f = half(r)
    rows = {
        f"Conv-input:{r}x{r}x3-output:{f}x{f}x{stem}": row(scale * r * 0.004, 900),
        f"expanded_conv-input:{f}x{f}x{stem}-output:{f}x{f}x{first}-expand:1-kernel:3-stride:1-idskip:0": row(
            scale * f * 0.006, 900
        ),
    }
    channels = first
    for number, out in enumerate(stages):
        for position in range(2 if number < 5 else 1):
            stride = (2, 2, 2, 1, 2, 1)[number] if position == 0 else 1
            left = half(f) if stride == 2 else f
            for kernel in (3, 5, 7):
                for ratio in ratios:
                    key = (
                        f"expanded_conv-input:{f}x{f}x{channels}-output:{left}x{left}x{out}-expand:{ratio}"
                        f"-kernel:{kernel}-stride:{stride}-idskip:{position}"
                    )
                    rows[key] = row(scale * (0.1 + 1e-6 * f * channels * ratio * (kernel + 3) + 1e-3 * out / 7))
            channels, f = out, left
    rows[f"Conv_1-input:{f}x{f}x{channels}-output:{f}x{f}x{head}"] = row(scale * f * 0.05, 900)
    rows[f"Logits-input:{f}x{f}x{head}-output:1000"] = row(scale * 0.3096415478615071, 900)
    return rows


def as_yaml(rows: Mapping[str, Fields], *, var: bool = False) -> bytes:
    """Block style, keys sorted, as the published files are; `var`: with variances in place of deviations."""
    text = []
    for key, fields in sorted(rows.items()):
        text.append(f"{key}:")
        for name, value in fields.items():
            squared = var and name == "std"
            text.append(f"  {'var' if squared else name}: {value * value if squared else value!r}")
    return ("\n".join(text) + "\n").encode()


def as_csv(rows: Mapping[str, Fields]) -> bytes:
    """Keys without type and idskip, and the mean."""
    lines = []
    for key, fields in rows.items():
        bare = key.partition("-input:")[2].replace("-output:", "-").partition("-idskip:")[0]
        lines.append(f"{bare},{fields['mean']!r}\n")
    return "".join(lines).encode()


def apq(*, stages: int = 1) -> dict[str, dict[str, float]]:
    """APQ's table of the first stages, complete in its kernels and bits; 7 x 7 depthwise has no 4-bit activations."""
    table = {"head": {"latency": 0.295904, "energy": 0.5061844841862639}, "tail": {"latency": 0.081608, "energy": 0.15}}
    widths, extents, strides = (16, 24, 40), (112, 56, 28), (2, 2)
    for number in range(stages):
        for position in range(2):
            inner = widths[number + (position > 0)]
            extent = extents[number + (position > 0)]
            stride = strides[number] if position == 0 else 1
            for mid in range(4 * inner, 6 * inner + 1, 8):
                shapes = [
                    ((inner, mid, extent, 1, 1, 0, 1), 1),
                    ((mid, widths[number + 1], extent // stride, 1, 1, 0, 1), 1),
                ]
                shapes += [((mid, mid, extent, k, stride, k // 2, mid), k) for k in (3, 5, 7)]
                for shape, kernel in shapes:
                    for w in (4, 6, 8):
                        for a in (4, 6, 8):
                            if kernel == 7 and a == 4:
                                continue
                            ms = 1e-6 * mid * extent * kernel * (w + a)
                            table[f"{shape}-W{w}A{a}"] = {"latency": ms, "energy": 2 * ms}
    return table


def haq_cycles() -> Any:
    """An array of 53 layers, equal where layers of MobileNetV2 are of equal shape, growing with both bit widths."""
    shapes = list(haq_shapes())
    w, a = np.meshgrid(np.arange(1, 9), np.arange(1, 9), indexing="ij")
    return np.array([1000 + (hash_of(shape) % 977) * w * a + 16 * w + a for shape in shapes], dtype=np.int64)


def hash_of(shape: tuple[int, ...]) -> int:
    """The same number for the same shape in every process."""
    number = 7
    for part in shape:
        number = (number * 1009 + part) % 1_000_003
    return number


def haq_shapes() -> Iterator[tuple[int, ...]]:
    """Channels in and out, map, kernel, stride, groups of MobileNetV2's layers."""
    yield (3, 32, 224, 3, 2, 1)
    yield (32, 32, 112, 3, 1, 32)
    yield (32, 16, 112, 1, 1, 1)
    channels, extent = 16, 112
    for out, repeats, stride in ((24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1)):
        for position in range(repeats):
            step = stride if position == 0 else 1
            mid = 6 * channels
            yield (channels, mid, extent, 1, 1, 1)
            yield (mid, mid, extent, 3, step, mid)
            extent //= step
            yield (mid, out, extent, 1, 1, 1)
            channels = out
    yield (320, 1280, 7, 1, 1, 1)
    yield (1280, 1000, 1, 1, 1, 1)


def npy(array: Any) -> bytes:
    """An .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=array.dtype == object)
    return file.getvalue()


def netadapt(*, batch: int = 128) -> OrderedDict[str, dict[str, Any]]:
    """Four layers, two of them one shape that share a dict."""

    def layer(
        cin: int, cout: int, kernel: int, stride: int, groups: int, extent: int, kind: str = "Conv2d"
    ) -> dict[str, Any]:
        pairs = [(c, c) for c in range(cin, 0, -8)] if groups > 1 else [
            (i, o) for i in range(cin, 0, -8) for o in range(cout, 0, -8)
        ]  # fmt: skip  # two kinds of layers
        return {
            "is_depthwise": groups > 1,
            "num_in_channels": cin,
            "num_out_channels": cout,
            "kernel_size": (kernel, kernel),
            "stride": (stride, stride),
            "padding": (kernel // 2, kernel // 2),
            "groups": groups,
            "layer_type_str": kind,
            "input_feature_map_size": [batch, cin, extent, extent],
            "latency": {(i, o): 1e-4 + 1e-7 * i * o for i, o in pairs},
        }

    pointwise = layer(16, 24, 1, 1, 1, 56)
    return OrderedDict(
        stem=layer(3, 16, 3, 2, 1, 224),
        depthwise=layer(16, 16, 3, 1, 16, 112),
        pointwise1=pointwise,
        pointwise2=pointwise,
        fc=layer(24, 16, 1, 1, 1, 1, "Linear"),
    )


def tfnas() -> OrderedDict[str, Any]:
    """Two blocks of 24 and 16 channels in the middle, of which only multiples of 8 were timed."""

    def curve(at8: float, at16: float, at24: float) -> OrderedDict[int, float]:
        knots = {8: at8, 16: at16, 24: at24}
        values = OrderedDict()
        for mid in range(1, 25):
            low = min(max(mid // 8 * 8, 8), 16)
            values[mid] = knots[low] + (knots[low + 8] - knots[low]) * (mid - low) / 8
        return values

    return OrderedDict(
        base=3.5,
        MBInvertedResBlock_112_16_0_24_k3_s2_relu=curve(0.5, 0.6, 0.8),
        MBInvertedResBlock_14_80_80_80_k5_s1_swish=curve(0.9, 1.3, 1.4),
    )


def fbnet(*, header: bool = True, scale: float = 1.0) -> bytes:
    """22 lines of 9 numbers; layers of one shape were measured one by one and differ a little."""
    names = "ir_k3_e1 ir_k3_s2 ir_k3_e3 ir_k3_e6 ir_k5_e1 ir_k5_s2 ir_k5_e3 ir_k5_e6 skip"
    lines = [names] if header else []
    for layer in range(22):
        values = [scale * (100.0 * (1 + column) + layer) for column in range(8)]
        lines.append(" ".join(repr(value) for value in (*values, 1.5 * scale)))
    return ("\n".join(lines) + "\n").encode()


def ofa_flops(resolutions: tuple[int, ...] = (224,)) -> dict[int, dict[str, Any]]:
    """Once-for-all's efficiency table."""
    table = {}
    for r in resolutions:
        blocks = [{(k, 1): 0.5 + 0.1 * k for k in (3, 5, 7)}]
        for number in range(20):
            blocks.append({(k, e): r * 0.01 + number + 0.1 * k * e for k in (3, 5, 7) for e in (3, 4, 6)})
        table[r] = {"mobile_inverted_blocks": blocks, "other_blocks": {0: 1.5, 22: 2.5, 23: 0.5, 24: 0.25}}
    return table


def object_npy(value: object) -> bytes:
    """An .npy file of one Python object, as `np.save` makes of a dict."""
    return npy(np.array(value, dtype=object))


def as_json(value: object) -> bytes:
    """Compact JSON."""
    return json.dumps(value).encode()


def as_pickle(value: object, protocol: int = 2) -> bytes:
    """A pickle."""
    return pickle.dumps(value, protocol=protocol)
