"""OpSpec: one operation to time. Kinds, shapes, bits, batch; a canonical form and the stable `op_id` made from it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from operator import attrgetter
from typing import Any, Literal, get_args

from lutbuilder_agent.errors import SpecError

OpKind = Literal[
    "conv", "mbconv", "bottleneck", "max_pool", "global_pool", "linear", "logits", "identity", "lump",
]  # fmt: skip  # one list, one line
OP_KINDS: tuple[str, ...] = get_args(OpKind)
ACTS = ("none", "relu", "relu6", "hswish", "swish")
# Which of the optional fields a kind has; bits and batch go with every kind.
_FIELDS_OF: Mapping[str, tuple[str, ...]] = {
    "conv": ("kernel", "stride", "padding", "groups", "act", "residual", "se"),
    "mbconv": (
        "mid_channels", "kernel", "stride", "groups", "se", "se_channels", "act", "residual", "shortcut", "expand_conv",
    ),
    "bottleneck": ("mid_channels", "kernel", "stride", "act", "residual", "shortcut"),
    "max_pool": ("kernel", "stride", "padding"),
    "global_pool": (),
    "linear": ("act",),
    "logits": (),
    "identity": (),
    "lump": ("stride",),
}  # fmt: skip  # a table reads as one
_KEEPS_CHANNELS = ("max_pool", "global_pool", "identity")
_GIVES_ONE_PIXEL = ("global_pool", "linear", "logits")


def make_divisible(width: float, divisor: int = 8) -> int:
    """Return `width` in channels rounded to a multiple of `divisor`, never below 90 % of it.

    Source: the rule of the MobileNetV2 reference code, which every preset's published widths follow.
    """
    if not width > 0 or divisor < 1:
        raise SpecError(f"make_divisible needs a positive width and divisor, got {width} and {divisor}")
    rounded = max(divisor, math.floor((width + divisor / 2) / divisor) * divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded


class _Hashed:
    """Room for an op's hash: the ops of a large space are looked up tens of thousands of times."""

    __slots__ = ("_hash",)
    _hash: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpSpec(_Hashed):
    """One op with its exact shapes. `height` and `width` are the *input* map in pixels; batch norm is folded.

    conv: kxk convolution, activation, residual add. mbconv: inverted bottleneck (Sandler et al., MobileNetV2, CVPR
    2018): 1x1 expand to `mid_channels` (absent if mid_channels == in_channels, unless `expand_conv`), depthwise kxk
    with the stride, squeeze-excite if `se`, linear 1x1 project, residual add; groups > 1 groups both 1x1 convolutions
    and shuffles the expanded channels (FBNet). bottleneck (He et al., ResNet, CVPR 2016): 1x1 to `mid_channels`, kxk
    with the stride, linear 1x1, add, activation. max_pool; global_pool: average over the map. linear: fully connected
    over the flattened map. logits: global average pool + fully connected. identity: an empty call of the same input
    shape. lump: several layers whose cost is known only together; no engine runs it.

    `residual` adds the input as it is; `shortcut` adds it after a stride x stride average pool where the stride is
    not 1 and a 1x1 convolution where the channels differ. `padding` in pixels on every side; -1: (kernel - 1) // 2.
    `se_channels`: width of the squeeze; 0: a quarter of mid_channels, made divisible by 8.
    """

    kind: OpKind
    in_channels: int
    out_channels: int
    height: int
    width: int
    mid_channels: int = 0
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    se: bool = False
    act: str = "none"
    residual: bool = False
    w_bits: int = 32
    a_bits: int = 32
    batch: int = 1
    expand_conv: bool = False
    shortcut: bool = False
    padding: int = -1
    se_channels: int = 0

    def __post_init__(self) -> None:
        if self.kind not in OP_KINDS:
            raise SpecError(f"unknown op kind {self.kind!r}; known: {', '.join(OP_KINDS)}")
        for name in ("in_channels", "out_channels", "height", "width", "kernel", "stride", "groups", "batch"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise SpecError(f"{name} must be a positive integer, got {value!r}")
        for name, least in (("mid_channels", 0), ("se_channels", 0), ("padding", -1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise SpecError(f"{name} must be an integer >= {least}, got {value!r}")
        for name in ("se", "residual", "shortcut", "expand_conv"):
            if type(getattr(self, name)) is not bool:
                raise SpecError(f"{name} must be true or false, got {getattr(self, name)!r}")
        for name in ("w_bits", "a_bits"):
            bits = getattr(self, name)
            if type(bits) is not int or not (1 <= bits <= 8 or bits in (16, 32)):
                raise SpecError(f"{name} must be 1 to 8, 16 or 32, got {bits!r}")
        if self.act not in ACTS:
            raise SpecError(f"unknown activation {self.act!r}; known: {', '.join(ACTS)}")
        for name in _NOT_OF[self.kind]:
            if getattr(self, name) != _DEFAULTS[name]:
                has = ", ".join(_FIELDS_OF[self.kind]) or "no fields of its own"
                raise SpecError(f"{name} does not go with kind {self.kind}, got {getattr(self, name)!r}; it has: {has}")
        if self.kind in ("mbconv", "bottleneck"):
            self._check_block()
        elif self.kind in _KEEPS_CHANNELS and self.in_channels != self.out_channels:
            raise SpecError(f"kind {self.kind} has equal in_channels and out_channels")
        self._check_window()
        if self.residual and (self.stride != 1 or self.in_channels != self.out_channels or self.padding >= 0):
            raise SpecError(
                "a residual needs stride 1 and equal in_channels and out_channels, and no padding of its own"
            )

    # What a field says already by its default is refused below, so that one op has one op_id.

    def _check_block(self) -> None:
        if not self.mid_channels:
            raise SpecError(f"kind {self.kind} needs mid_channels")
        if self.shortcut and (
            self.residual or self.stride > 2 or (self.stride, self.in_channels) == (1, self.out_channels)
        ):
            raise SpecError(
                "a shortcut needs stride 2, or stride 1 and other out_channels than in_channels; and no residual"
            )
        if self.expand_conv and self.mid_channels != self.in_channels:
            raise SpecError("expand_conv goes with mid_channels == in_channels; leave it out: elsewhere there is one")
        if self.se_channels and not self.se:
            raise SpecError("se_channels needs se")
        if self.se_channels and self.se_channels == _squeezed(self.mid_channels):
            raise SpecError(
                f"se_channels {self.se_channels} is what mid_channels {self.mid_channels} gives: leave it out"
            )

    def _check_window(self) -> None:
        if self.kernel % 2 == 0:
            raise SpecError(f"kernel must be odd, got {self.kernel}")
        if self.kind == "max_pool" and self.kernel == 1:
            raise SpecError("a max_pool needs a kernel above 1")
        if self.padding == (self.kernel - 1) // 2:
            raise SpecError(f"padding {self.padding} is what kernel {self.kernel} gives: leave it out")
        if self.padding >= 0 and min(self.height, self.width) + 2 * self.padding < self.kernel:
            raise SpecError(
                f"kernel {self.kernel} is larger than the map of {self.height}x{self.width} with its padding"
            )

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            value = hash(_VALUES(self))
            object.__setattr__(self, "_hash", value)
            return value

    @property
    def op_id(self) -> str:
        """16 hex digits: sha256 of kind and the fields that differ from their defaults; new fields rename nothing."""
        return _op_id(self)

    @property
    def expand(self) -> float | None:
        """Expansion ratio of an mbconv; None for other kinds."""
        return self.mid_channels / self.in_channels if self.kind == "mbconv" else None

    @property
    def squeeze_channels(self) -> int:
        """Width of the squeeze-excite in the middle; 0 where there is none."""
        return self.se_channels or _squeezed(self.mid_channels) if self.se else 0

    @property
    def out_height(self) -> int:
        """Rows of the output map in pixels (1 for logits, linear and global_pool)."""
        return self._left(self.height)

    @property
    def out_width(self) -> int:
        """Columns of the output map in pixels (1 for logits, linear and global_pool)."""
        return self._left(self.width)

    def _left(self, extent: int) -> int:
        if self.kind in _GIVES_ONE_PIXEL:
            return 1
        lost = 1 if self.padding < 0 else self.kernel - 2 * self.padding
        return (extent - lost) // self.stride + 1

    def canonical(self) -> dict[str, Any]:
        """Kind, shapes, and every other field that differs from its default, sorted by name."""
        return {n: v for n, v in zip(_NAMES, _VALUES(self), strict=True) if n not in _DEFAULTS or _DEFAULTS[n] != v}

    @classmethod
    def from_canonical(cls, values: dict[str, Any]) -> OpSpec:
        """Build from `canonical()`. Raises SpecError for unknown or missing fields and for nonsense."""
        try:
            return cls(**values)
        except TypeError as error:
            raise SpecError(f"not an op: {error}") from error

    def label(self) -> str:
        """Short human name, e.g. `mbconv 24x56x56 k5 s1 e3 -> 24`; shape is channels x height x width."""
        parts = [f"{self.kind} {self.in_channels}x{self.height}x{self.width}"]
        if "kernel" in _FIELDS_OF[self.kind]:
            parts.append(f"k{self.kernel} s{self.stride}")
        if self.padding >= 0:
            parts.append(f"p{self.padding}")
        if self.expand is not None:
            parts.append(f"e{self.expand:g}")
        elif self.mid_channels:
            parts.append(f"m{self.mid_channels}")
        if self.groups != 1:
            parts.append(f"g{self.groups}")
        if self.kind not in _KEEPS_CHANNELS:
            parts.append(f"-> {self.out_channels}")
        if self.se_channels:
            parts.append(f"se{self.se_channels}")
        if self.expand_conv:
            parts.append("+ expand conv")
        if self.shortcut:
            parts.append("+ shortcut")
        if (self.w_bits, self.a_bits) != (32, 32):
            parts.append(f"W{self.w_bits}A{self.a_bits}")
        if self.batch != 1:
            parts.append(f"bs{self.batch}")
        return " ".join(parts)


_NAMES: tuple[str, ...] = tuple(sorted(f.name for f in fields(OpSpec)))
_VALUES = attrgetter(*_NAMES)
_DEFAULTS: dict[str, Any] = {
    f.name: f.default
    for f in fields(OpSpec)
    if f.name not in ("kind", "in_channels", "out_channels", "height", "width")
}
_NOT_OF: Mapping[str, tuple[str, ...]] = {
    kind: tuple(name for name in _DEFAULTS if name not in (*has, "w_bits", "a_bits", "batch"))
    for kind, has in _FIELDS_OF.items()
}


def _squeezed(mid_channels: int) -> int:
    return make_divisible(max(mid_channels // 4, 1))


@lru_cache(maxsize=65_536)
def _op_id(op: OpSpec) -> str:
    body = json.dumps(op.canonical(), separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest()[:16]
