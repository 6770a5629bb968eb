"""Registry of search spaces: name -> import path, imported when asked for. A new preset is one file and one line."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from lutbuilder.spaces.space import SearchSpace
from lutbuilder_agent.errors import unknown_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Where a preset lives: a function `(variant, *, batch, name) -> SearchSpace`. The first variant is the default."""

    path: str
    summary: str
    variants: tuple[str, ...]


SPACES: Mapping[str, Entry] = {
    "proxyless": Entry(
        path="lutbuilder.spaces.proxyless:proxyless_search",
        summary="ProxylessNAS, 21 layers of k{3,5,7} x e{3,6} or nothing, 224 x 224 (Cai et al., ICLR 2019)",
        variants=("w1.0", "w1.1", "w1.2", "w1.3", "w1.4"),
    ),
    "amc": Entry(
        path="lutbuilder.spaces.grid:amc",
        summary="MobileNetV1 with pruned channels, 14 widths of multiples of 8 (He et al., ECCV 2018)",
        variants=("v1", "ladder"),
    ),
    "netadapt": Entry(
        path="lutbuilder.spaces.grid:netadapt",
        summary="MobileNetV1 with pruned channels, all multiples of 8 or 32 (Yang et al., ECCV 2018)",
        variants=("step8", "step32"),
    ),
}
ALIASES: Mapping[str, str] = {"proxyless_search": "proxyless"}


def names() -> tuple[str, ...]:
    """Return every name `get` takes but aliases: a plain name is the default variant, the others are `name-variant`."""
    return tuple(
        f"{name}-{variant}" if number else name
        for name, entry in SPACES.items()
        for number, variant in enumerate(entry.variants)
    )


def get(name: str, *, batch: int = 1) -> SearchSpace:
    """Return a preset with its ops at `batch`, e.g. "proxyless" or "proxyless-w1.3".

    Raises UnknownName listing what there is.
    """
    base, _, variant = name.partition("-")
    base = ALIASES.get(base, base)
    entry = SPACES.get(base)
    if entry is None or (variant or entry.variants[0]) not in entry.variants or name.endswith("-"):
        raise unknown_name("search space", name, names())
    variant = variant or entry.variants[0]
    module, _, attribute = entry.path.partition(":")
    factory = getattr(importlib.import_module(module), attribute)
    canonical = base if variant == entry.variants[0] else f"{base}-{variant}"
    return cast(SearchSpace, factory(variant, batch=batch, name=canonical))
