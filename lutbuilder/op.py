"""OpSpec: one operation to time. Kinds, shapes, bits, batch; a canonical form and the stable `op_id` made from it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Literal, get_args

from lutbuilder_agent.errors import SpecError

OpKind = Literal["conv", "mbconv", "logits", "identity"]
OP_KINDS: tuple[str, ...] = get_args(OpKind)
ACTS = ("none", "relu", "relu6")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpSpec:
    """One op with its exact shapes. `height` and `width` are the *input* map in pixels; batch norm is folded.

    conv: kxk convolution + activation. mbconv: inverted bottleneck (Sandler et al., MobileNetV2, CVPR 2018): 1x1
    expand to `mid_channels` (absent if mid_channels == in_channels), depthwise kxk with the stride, linear 1x1 project,
    residual add. logits: global average pool + fully connected. identity: an empty call of the same input shape.
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

    def __post_init__(self) -> None:
        if self.kind not in OP_KINDS:
            raise SpecError(f"unknown op kind {self.kind!r}; known: {', '.join(OP_KINDS)}")
        for name in ("in_channels", "out_channels", "height", "width", "kernel", "stride", "groups", "batch"):
            _check_positive(name, getattr(self, name))
        if type(self.mid_channels) is not int or self.mid_channels < 0:
            raise SpecError(f"mid_channels must be an integer >= 0, got {self.mid_channels!r}")
        for name in ("se", "residual"):
            if type(getattr(self, name)) is not bool:
                raise SpecError(f"{name} must be true or false, got {getattr(self, name)!r}")
        for name in ("w_bits", "a_bits"):
            bits = getattr(self, name)
            if type(bits) is not int or not (1 <= bits <= 8 or bits in (16, 32)):
                raise SpecError(f"{name} must be 1 to 8, 16 or 32, got {bits!r}")
        if self.act not in ACTS:
            raise SpecError(f"unknown activation {self.act!r}; known: {', '.join(ACTS)}")
        if self.kernel % 2 == 0:
            raise SpecError(f"kernel must be odd, got {self.kernel}")
        if (self.kind == "mbconv") != (self.mid_channels > 0):
            raise SpecError(
                f"mid_channels goes with kind mbconv, got kind {self.kind}, mid_channels {self.mid_channels}"
            )
        if self.residual and (self.stride != 1 or self.in_channels != self.out_channels):
            raise SpecError("a residual needs stride 1 and equal in_channels and out_channels")
        convolves = (self.kernel, self.stride, self.groups, self.act, self.residual) != (1, 1, 1, "none", False)
        if self.kind in ("logits", "identity") and convolves:
            raise SpecError(f"kernel, stride, groups, act and residual go with conv and mbconv, got kind {self.kind}")
        if self.kind == "identity" and self.in_channels != self.out_channels:
            raise SpecError("an identity has equal in_channels and out_channels")

    @property
    def op_id(self) -> str:
        """16 hex digits: sha256 of kind and the fields that differ from their defaults; new fields rename nothing."""
        return _op_id(self)

    @property
    def expand(self) -> float | None:
        """Expansion ratio of an mbconv; None for other kinds."""
        return self.mid_channels / self.in_channels if self.mid_channels else None

    @property
    def out_height(self) -> int:
        """Rows of the output map in pixels (1 for logits)."""
        return 1 if self.kind == "logits" else (self.height - 1) // self.stride + 1

    @property
    def out_width(self) -> int:
        """Columns of the output map in pixels (1 for logits)."""
        return 1 if self.kind == "logits" else (self.width - 1) // self.stride + 1

    def canonical(self) -> dict[str, Any]:
        """Kind, shapes, and every other field that differs from its default, sorted by name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {n: v for n, v in sorted(values.items()) if n not in _DEFAULTS or _DEFAULTS[n] != v}

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
        if self.kind in ("conv", "mbconv"):
            parts.append(f"k{self.kernel} s{self.stride}")
        if self.expand is not None:
            parts.append(f"e{self.expand:g}")
        if self.groups != 1:
            parts.append(f"g{self.groups}")
        if self.kind != "identity":
            parts.append(f"-> {self.out_channels}")
        if (self.w_bits, self.a_bits) != (32, 32):
            parts.append(f"W{self.w_bits}A{self.a_bits}")
        if self.batch != 1:
            parts.append(f"bs{self.batch}")
        return " ".join(parts)


_DEFAULTS: dict[str, Any] = {
    f.name: f.default
    for f in fields(OpSpec)
    if f.name not in ("kind", "in_channels", "out_channels", "height", "width")
}


@lru_cache(maxsize=65_536)
def _op_id(op: OpSpec) -> str:
    body = json.dumps(op.canonical(), separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _check_positive(name: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise SpecError(f"{name} must be a positive integer, got {value!r}")
