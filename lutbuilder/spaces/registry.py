"""Registry of search spaces: name -> import path, imported when asked for. A new preset is one file and one line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from pathlib import Path
from typing import cast

from lutbuilder.op import OpSpec
from lutbuilder.spaces.space import Assignment, SearchSpace
from lutbuilder_agent.errors import SpecError, UnknownName, unknown_name

SUFFIX = ".toml"  # of a file that describes a space


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Where a preset lives: a function `(variant, *, resolutions, batch, name) -> SearchSpace`.

    The first variant is the default; without any, the function takes none. `resolutions`: grids of them by name, ""
    the default; without any, the function takes none.
    """

    path: str
    summary: str
    variants: tuple[str, ...] = ()
    grids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


_OFA_GRIDS = {"": tuple(range(160, 225, 16)), "fine": tuple(range(128, 225, 4))}
SPACES: Mapping[str, Entry] = {
    "proxyless": Entry(
        path="lutbuilder.spaces.proxyless:proxyless_search",
        summary="ProxylessNAS, 21 layers of k{3,5,7} x e{3,6} or nothing, 224 x 224 (Cai et al., ICLR 2019)",
        variants=("w1.0", "w1.1", "w1.2", "w1.3", "w1.4"),
    ),
    "fbnet": Entry(
        path="lutbuilder.spaces.fbnet:fbnet",
        summary="FBNet, 22 layers of k{3,5} x e{1,3,6} or nothing, 224 x 224 (Wu et al., CVPR 2019)",
        variants=("h1504", "h1984", "h1504-lean", "h1984-lean"),
    ),
    "ofa_proxyless": Entry(
        path="lutbuilder.spaces.ofa:ofa_proxyless",
        summary="Once-for-all, ProxylessNAS skeleton: depths, k{3,5,7}, e{3,4,6} (Cai et al., ICLR 2020)",
        variants=("w1.0", "w1.3"),
        grids=_OFA_GRIDS,
    ),
    "ofa_mbv3": Entry(
        path="lutbuilder.spaces.ofa:ofa_mbv3",
        summary="Once-for-all, MobileNetV3 skeleton: depths, k{3,5,7}, e{3,4,6} (Cai et al., ICLR 2020)",
        variants=("w1.0", "w1.2"),
        grids=_OFA_GRIDS,
    ),
    "ofa_resnet50": Entry(
        path="lutbuilder.spaces.ofa_resnet:ofa_resnet50",
        summary="Once-for-all, ResNet-50: depths, widths, expansion ratios (Cai et al., ICLR 2020)",
        grids={"": _OFA_GRIDS["fine"]},
    ),
    "attentivenas": Entry(
        path="lutbuilder.spaces.attentivenas:attentivenas",
        summary="AttentiveNAS and AlphaNet: widths, depths, kernels, expansions of 7 stages (Wang et al., 2021)",
        grids={"": (192, 224, 256, 288)},
    ),
    "apq": Entry(
        path="lutbuilder.spaces.apq:apq",
        summary="APQ, 21 layers: kernels, pruned widths, bits of weights and activations (Wang et al., CVPR 2020)",
    ),
    "haq": Entry(
        path="lutbuilder.spaces.haq:haq",
        summary="MobileNetV2 or V1 with 1 to 8 bits a layer, the ends fixed at 8 or free (Wang et al., CVPR 2019)",
        variants=("v2", "v1", "v2-free", "v1-free"),
    ),
    "amc": Entry(
        path="lutbuilder.spaces.grid:amc",
        summary="MobileNetV1 or V2 with pruned channels, widths of multiples of 8 (He et al., ECCV 2018)",
        variants=("v1", "ladder", "v2", "v2-relu6"),
    ),
    "netadapt": Entry(
        path="lutbuilder.spaces.grid:netadapt",
        summary="MobileNetV1 or AlexNet with pruned channels, multiples of 8 or 32 (Yang et al., ECCV 2018)",
        variants=("step8", "step32", "alexnet"),
    ),
}
ALIASES: Mapping[str, str] = {"proxyless_search": "proxyless", "alphanet": "attentivenas"}


def names() -> tuple[str, ...]:
    """Return every name `get` takes but aliases and single resolutions, the default variant and grid left out of it."""
    return tuple(
        _name(base, variant, grid)
        for base, entry in SPACES.items()
        for variant in entry.variants or ("",)
        for grid in entry.grids or ("",)
    )


def get(name: str, *, batch: int = 1) -> SearchSpace:
    """Return a space with its ops at `batch`: a preset, one described in a TOML file, or one made by Python.

    A name is preset[-variant][-grid], e.g. "proxyless", "proxyless-w1.3", "ofa_mbv3-w1.2-fine", or ends in a single
    resolution, "ofa_mbv3-w1.2-r224"; or it is the path of a file that ends in .toml, or MODULE:NAME of a SearchSpace in
    an installed module or a file of the current folder (docs/spaces.md).
    Raises UnknownName listing what there is, SpecError for a file or a module that has no such space.
    """
    if name.endswith(SUFFIX):
        from lutbuilder.spaces.toml_file import load

        return load(name, batch=batch)
    if ":" in name:
        return _of_module(name, batch=batch)
    base, *words = name.split("-")
    base = ALIASES.get(base, base)
    entry = SPACES.get(base)
    if entry is None:
        raise unknown_name("search space", name, names())
    grid = words.pop() if any(words[-1:]) and (words[-1] in entry.grids or _single(words[-1], entry)) else ""
    variant = "-".join(words)
    if (words and not variant) or variant not in ("", *entry.variants):
        raise unknown_name("search space", name, names())
    module, _, attribute = entry.path.partition(":")
    factory = getattr(importlib.import_module(module), attribute)
    chosen: dict[str, object] = {"batch": batch, "name": _name(base, variant, grid)}
    if entry.variants:
        chosen["variant"] = variant or entry.variants[0]
    if entry.grids:
        chosen["resolutions"] = entry.grids[grid] if grid in entry.grids else (_single(grid, entry),)
    return cast(SearchSpace, factory(**chosen))


def named(text: str, *, what: str, like: str) -> object:
    """Return what MODULE:NAME names, in a file of the current folder (which is looked in first) or an installed module.

    Raises SpecError saying what is not there; what the module raises while it is imported is told with its name.
    """
    module, colon, attribute = text.partition(":")
    if not (module and colon and attribute) or module.endswith(".py"):
        raise SpecError(f"{what} {text!r} is not MODULE:NAME; write it as {like} for a file mine.py")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except Exception as error:  # a user's code runs here
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            raise SpecError(f"{what} {text!r}: no {module}.py in {here}, and no such module installed") from error
        raise SpecError(f"{what} {text!r}: importing {module} raised {type(error).__name__}: {error}") from error
    try:
        return cast(object, reduce(getattr, attribute.split("."), found))
    except AttributeError as error:
        raise SpecError(f"{what} {text!r}: {error}") from error


def _of_module(name: str, *, batch: int) -> SearchSpace:
    space = named(name, what="search space", like="mine:space")
    if not isinstance(space, SearchSpace):
        raise SpecError(f"search space {name!r} is no SearchSpace but {space!r:.60}")
    sites = tuple(replace(site, op=partial(_at_batch, site.op, batch)) for site in space.sites)
    return replace(space, name=name, sites=sites)


def _at_batch(op: Callable[[Assignment], OpSpec | None], batch: int, assignment: Assignment) -> OpSpec | None:
    found = op(assignment)
    return None if found is None else replace(found, batch=batch)


def _name(base: str, variant: str, grid: str) -> str:
    """Return the one name of a choice."""
    default = SPACES[base].variants[:1]
    return "-".join(word for word in (base, *((variant,) if (variant,) != default else ()), grid) if word)


def _single(word: str, entry: Entry) -> int:
    """Return the resolution that "r224" names; 0 if it names none. Raises UnknownName if the preset has no such one."""
    if not entry.grids or not word[1:].isdecimal() or word != f"r{int(word[1:])}":
        return 0
    known = sorted({r for grid in entry.grids.values() for r in grid})
    if int(word[1:]) not in known:
        raise UnknownName(f"no resolution {word}; there are: {', '.join(f'r{r}' for r in known)}")
    return int(word[1:])
