"""NetAdapt's table: seconds of single convolutions and fully connected layers by their channels, as a pickle.

A layer was timed alone, without batch norm, activation or pool, over 500 runs of a batch.
Source: Yang et al., NetAdapt, ECCV 2018, and its released code.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from lutbuilder.lut.interchange.format import Format, Page, Written
from lutbuilder.lut.interchange.records import Entry, Reading, ReadOptions
from lutbuilder.lut.interchange.source import Invalid, Malformed, Source, check_size, located, positive
from lutbuilder.lut.interchange.unpickle import pickled, unpickled
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import SpecError

RUNS = 500
CONV, TRANSPOSED, LINEAR = "Conv2d", "ConvTranspose2d", "Linear"
BARE = "timed alone, without batch norm, activation or pool"

_NEEDED = (
    "is_depthwise", "num_in_channels", "num_out_channels", "kernel_size", "stride", "padding", "groups",
    "layer_type_str", "input_feature_map_size", "latency",
)  # fmt: skip  # one list
_ALSO = ("output_feature_map_size", "before_squared_pixel_shuffle_factor", "after_squared_pixel_shuffle_factor")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """What the file says of a layer beside its channels."""

    kind: str
    depthwise: bool
    kernel: int
    stride: int
    padding: int
    height: int
    width: int
    batch: int

    def op(self, in_channels: int, out_channels: int) -> OpSpec:
        """Return the layer at other channels."""
        if self.kind == LINEAR:
            return OpSpec(
                kind="linear", in_channels=in_channels, out_channels=out_channels, height=1, width=1, batch=self.batch
            )
        if self.depthwise and in_channels != out_channels:
            raise Malformed(f"a depthwise convolution of {in_channels} -> {out_channels} channels")
        return OpSpec(
            kind="conv", in_channels=in_channels, out_channels=out_channels, height=self.height, width=self.width,
            kernel=self.kernel, stride=self.stride, groups=in_channels if self.depthwise else 1,
            padding=-1 if self.padding == (self.kernel - 1) // 2 else self.padding, batch=self.batch,
        )  # fmt: skip  # one shape, three lines


def _read(source: Source, options: ReadOptions) -> Reading:
    with located(source):
        table = unpickled(source)
        if type(table) is list:
            raise Malformed("a list of tables by channels alone: these are MACs, not latencies")
        if type(table) not in (dict, OrderedDict) or not table:
            raise Malformed("not a mapping of layers by name")
    entries: list[Entry] = []
    dropped: list[str] = []
    seen: set[int] = set()
    for name, fields in _items(table):
        if id(fields) in seen:  # equal layers share one dict
            continue
        seen.add(id(fields))
        with located(source, f"layer {name!r}", dropped=dropped if options.drop_invalid else None):
            layer = _layer(name, fields, options)
            check_size(len(entries) + len(fields["latency"]))
            presets = _of_preset(options.preset, layer.batch)
            for channels, seconds in fields["latency"].items():
                where = f"layer {name!r} {channels!r}"
                with located(source, where, dropped=dropped if options.drop_invalid else None):
                    op = layer.op(*_pair(channels, "channels"))
                    entries.append(
                        Entry(
                            op=presets.get(op, op),
                            key=f"{name} {channels}",
                            value=positive(seconds, "latency"),
                            unit="s",
                            count=RUNS,
                            method=options.method or "isolated",
                            reason=BARE if op in presets else None,
                        )
                    )
    return Reading(entries=tuple(entries), dropped=tuple(dropped))


def _items(table: object) -> list[tuple[Any, Any]]:
    return list(table.items()) if isinstance(table, dict) else []


def _layer(name: object, fields: object, options: ReadOptions) -> _Layer:
    if type(name) is not str:
        raise Malformed("a layer's name is a text")
    if type(fields) not in (dict, OrderedDict) or not isinstance(fields, dict):
        raise Malformed("not a mapping of its properties")
    missing = [field for field in _NEEDED if field not in fields]
    unknown = [field for field in fields if field not in (*_NEEDED, *_ALSO)]
    if missing or unknown:
        raise Malformed(f"field {missing[0]} is missing" if missing else f"unknown field {unknown[0]!r}")
    kind = fields["layer_type_str"]
    if kind == TRANSPOSED:
        raise Invalid("a transposed convolution, which no kind of op here is")
    if kind not in (CONV, LINEAR):
        raise Malformed(f"unknown layer type {kind!r}; known: {CONV}, {LINEAR}")
    if type(fields["latency"]) not in (dict, OrderedDict):
        raise Malformed("latency is no mapping of seconds by (channels in, channels out)")
    in_channels, groups = (_integer(fields[field], field) for field in ("num_in_channels", "groups"))
    depthwise = fields["is_depthwise"]
    if type(depthwise) is not bool or depthwise != (groups != 1) or (depthwise and groups != in_channels):
        raise Malformed(f"is_depthwise {depthwise!r} with {groups} groups of {in_channels} channels")
    extent = fields["input_feature_map_size"]
    if type(extent) not in (list, tuple) or len(extent) != 4:
        raise Malformed("input_feature_map_size is not [batch, channels, rows, columns]")
    batch, channels, height, width = (_integer(size, "input_feature_map_size") for size in extent)
    if channels != in_channels:
        raise Malformed(f"a map of {channels} channels for a layer of {in_channels}")
    if kind == LINEAR and (height, width) != (1, 1):
        raise Malformed(f"a fully connected layer on a map of {height}x{width}")
    return _Layer(
        kind=str(kind),
        depthwise=depthwise,
        kernel=_square(fields["kernel_size"], "kernel_size"),
        stride=_square(fields["stride"], "stride"),
        padding=_square(fields["padding"], "padding", least=0),
        height=height,
        width=width,
        batch=options.batch or batch,
    )


@lru_cache(maxsize=8)  # asked for every layer
def _of_preset(name: str | None, batch: int) -> Mapping[OpSpec, OpSpec]:
    """Return the preset's ops by what a layer timed alone says of them: no activation, no pool, no residual."""
    if name is None:
        return {}
    from lutbuilder import spaces

    found: dict[OpSpec, OpSpec] = {}
    for op in spaces.get(name, batch=batch).ops():
        if op.kind == "conv":
            found[replace(op, act="none", residual=False)] = op
        elif op.kind in ("logits", "linear"):
            flat = op.in_channels * (op.height * op.width if op.kind == "linear" else 1)
            alone = OpSpec(
                kind="linear", in_channels=flat, out_channels=op.out_channels, height=1, width=1, batch=batch
            )
            found[alone] = op
    return found


def _pair(value: object, name: str) -> tuple[int, int]:
    if type(value) is not tuple or len(value) != 2:
        raise Malformed(f"{name} {value!r} is no pair (in, out)")
    return _integer(value[0], name), _integer(value[1], name)


def _square(value: object, name: str, *, least: int = 1) -> int:
    sides = value if isinstance(value, (tuple, list)) else (value,)
    if len(sides) not in (1, 2) or sides[0] != sides[-1]:
        raise Malformed(f"{name} {value!r} is not the same both ways")
    return _integer(sides[0], name, least=least)


def _integer(value: object, name: str, *, least: int = 1) -> int:
    if type(value) is not int or value < least:
        raise Malformed(f"{name} must be an integer from {least}, got {value!r}")
    return value


# --- Writing


def _write(page: Page) -> Written:
    """A layer a site of the preset, named as the site; equal layers share one dict, as the reader expects."""
    space = page.space
    if space is None:
        raise SpecError("this format names layers: name the network, like --preset netadapt-step32")
    layers: dict[str, list[OpSpec]] = {}
    shared: dict[frozenset[OpSpec], dict[str, object]] = {}
    written: dict[OpSpec, None] = {}
    for site, ops in zip(space.sites, space.site_ops, strict=True):
        there = [op for op in dict.fromkeys(ops) if op is not None]
        kinds = {op.kind for op in there}
        if kinds <= {"max_pool", "global_pool"}:
            continue  # NetAdapt does not time them
        if not kinds <= {"conv", "logits", "linear"}:
            raise SpecError(f"{there[0].label()} cannot be said by this format: it is no single convolution")
        written.update(dict.fromkeys(there))
        layers[site.name] = there
    page.require(written)
    table = OrderedDict(
        (name, shared.setdefault(frozenset(there), _properties(there, page))) for name, there in layers.items()
    )
    return Written(contents={"": pickled(table)}, ops=tuple(written))


def _properties(ops: list[OpSpec], page: Page) -> dict[str, object]:
    widest = max(ops, key=lambda op: (op.in_channels, op.out_channels))
    if any(op.groups not in (1, op.in_channels) for op in ops):
        raise SpecError(f"{widest.label()} cannot be said by this format: {widest.groups} groups")
    linear = widest.kind != "conv"
    flat = widest.height * widest.width if widest.kind == "linear" else 1
    padding = (widest.kernel - 1) // 2 if widest.padding < 0 else widest.padding
    extent = [1, 1] if linear else [widest.height, widest.width]
    return {
        "is_depthwise": widest.groups > 1,
        "num_in_channels": widest.in_channels * flat,
        "num_out_channels": widest.out_channels,
        "kernel_size": (widest.kernel, widest.kernel),
        "stride": (widest.stride, widest.stride),
        "padding": (padding, padding),
        "groups": widest.groups,
        "layer_type_str": LINEAR if linear else CONV,
        "input_feature_map_size": [widest.batch, widest.in_channels * flat, *extent],
        "latency": {(op.in_channels * flat, op.out_channels): page.cell(op).value / 1e3 for op in ops},
    }


NETADAPT_PICKLE = Format(
    name="netadapt-pickle",
    summary="NetAdapt, pickle: seconds of single layers by channels, of the batch in the file",
    read=_read,
    write=_write,
    options=("preset", "batch"),
    files="*.pkl",
    pickled=True,
)
