"""Held-out networks: which ones a table is checked with, chosen or read from a file; their list fixed by its hash.

A list of networks as a file is one JSON object: `space`, `batch`, `networks_sha256`, and `networks`, each with its id,
its group and its arch, values by the names of the space's variables. A plain JSON list of archs is read too: objects of
values by name, or lists of value numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lutbuilder.campaign.spec import CampaignOp
from lutbuilder_agent.errors import SpecError

if TYPE_CHECKING:
    from lutbuilder.lut import Lut
    from lutbuilder.op import OpSpec
    from lutbuilder.spaces import SearchSpace

_LISTED = "listed"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """A network that is timed to check the table, never to make it.

    `arch` is its canonical encoding in the space, `group` random, searched or listed.
    """

    arch: tuple[int, ...]
    ops: tuple[OpSpec, ...]
    group: str

    @classmethod
    def of(cls, space: SearchSpace, arch: Sequence[int], *, group: str) -> HeldOut:
        """Return the network of an encoding. Raises SpecError for one that is out of range or breaks a constraint."""
        encoding = np.asarray(arch, dtype=np.int64)[None]
        (canonical,) = space.canonical(encoding).tolist()
        return cls(arch=tuple(canonical), ops=space.arch_ops(canonical), group=group)

    @property
    def op_id(self) -> str:
        """What a campaign and a report call it."""
        return CampaignOp.network(self.ops).op_id


def choose(
    space: SearchSpace, lut: Lut, *, n_random: int, n_searched: int, seed: int, avoid: Collection[str] = ()
) -> tuple[HeldOut, ...]:
    """Return networks a search would pick by `lut`, and random ones spread over its whole latency range.

    No two are equal, and none is one of `avoid` (ids): where a draw hits one, it goes on. Fixed by the arguments.
    Raises SpecError if the space has too few.
    """
    from lutbuilder.nas.compiled import compile_space
    from lutbuilder.nas.sampling import searched_archs, spread_archs

    compiled = compile_space(space, lut)
    rng = np.random.default_rng(seed)
    taken = set(avoid)

    def take(arch: Sequence[int]) -> bool:
        op_id = HeldOut.of(space, arch, group="").op_id  # two archs may be one network: where a layer is left out
        new = op_id not in taken
        taken.add(op_id)
        return new

    searched = searched_archs(compiled, n_searched, rng, take) if n_searched else ()
    random = spread_archs(compiled, n_random, rng, take) if n_random else ()
    return (
        *(HeldOut.of(space, arch, group="searched") for arch in searched),
        *(HeldOut.of(space, arch, group="random") for arch in random),
    )


def networks_sha256(networks: Sequence[HeldOut]) -> str:
    """Return the hash of the list of networks, their order and groups included."""
    body = [[network.group, [op.op_id for op in network.ops]] for network in networks]
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()


def save_networks(networks: Sequence[HeldOut], space: SearchSpace, path: Path, *, batch: int) -> None:
    """Write a list of networks as a file for `read_networks`.

    A file that holds this very list stays; one that holds anything else is not overwritten. Raises SpecError.
    """
    body = {
        "space": space.name,
        "batch": batch,
        "networks_sha256": networks_sha256(networks),
        "networks": [
            {"id": network.op_id, "group": network.group, "arch": space.decode(network.arch)} for network in networks
        ],
    }
    text = json.dumps(body, indent=1) + "\n"
    try:
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise SpecError(f"{path} is there already and holds something else: choose another name")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot write the list of networks to {path}: {error}; choose another file") from error


def read_networks(path: Path, space: SearchSpace, *, batch: int) -> tuple[HeldOut, ...]:
    """Return the networks listed in a file, in its order.

    Raises SpecError naming the file and the entry: not JSON, another space, an arch the space does not have, a network
    named twice, fewer than 3, or a list that is not the one its hash was made of.
    """
    body = _parsed(path)
    entries, said = body, ""
    if isinstance(body, dict):
        entries, said = body.get("networks"), body.get("networks_sha256", "")
        if body.get("space", space.name) != space.name:
            raise SpecError(f"{path} lists networks of space {body['space']!r}, the table is of {space.name!r}")
        if body.get("batch", batch) != batch:
            said = ""  # the same archs at another batch are other ops: the hash is of those
    if not isinstance(entries, list):
        raise SpecError(
            f'{path} is not a list of networks: write [{{"VARIABLE": VALUE, ...}}, ...], or --save-networks'
        )
    networks: dict[str, HeldOut] = {}
    for number, entry in enumerate(entries):
        try:
            network = _network(entry, space)
        except SpecError as error:
            raise SpecError(f"{path}: network {number}: {error}") from error
        if network.op_id in networks:
            before = list(networks).index(network.op_id)
            raise SpecError(f"{path}: network {number} is network {before} once more: each is listed once")
        networks[network.op_id] = network
    found = tuple(networks.values())
    if len(found) < 3:
        raise SpecError(f"{path} lists {len(found)} networks; a validation needs at least 3")
    if said and said != networks_sha256(found):
        raise SpecError(
            f"{path}: the networks are not those its networks_sha256 was made of: the list was changed after it was "
            "saved. Take the original, or remove networks_sha256 to fix a new list"
        )
    return found


def refuse_fitted(networks: Sequence[HeldOut], lut: Lut) -> None:
    """Raise SpecError if one of the networks took part in making the table: it says nothing about the others."""
    fitted = set(lut.meta.fitted_networks)
    used = [number for number, network in enumerate(networks) if network.op_id in fitted]
    if used:
        more = f" (and {len(used) - 1} more)" if len(used) > 1 else ""
        raise SpecError(
            f"network {used[0]} of the list, {networks[used[0]].op_id}{more}, was used to fit {lut.spec}: a table is "
            "not checked with what it was fitted to. Take it off the list, or let networks be chosen: --random 60"
        )


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"cannot read the list of networks {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # text that is not UTF-8 is a ValueError too
        raise SpecError(f"{path} is not JSON: {error}") from error


def _network(entry: object, space: SearchSpace) -> HeldOut:
    """Return the network of one entry of a file."""
    group, arch = _LISTED, entry
    if isinstance(entry, dict) and "arch" in entry and "arch" not in space.positions:
        group, arch = entry.get("group", _LISTED), entry["arch"]
        if not isinstance(group, str) or not group:
            raise SpecError(f"its group is a word like random, searched or {_LISTED}, got {group!r}")
    if isinstance(arch, dict):
        if any(isinstance(value, bool) for value in arch.values()):  # True would pass for 1
            raise SpecError(f"values of {space.name!r} are numbers or words, got {arch!r:.80}")
        return HeldOut.of(space, space.encode(arch).tolist(), group=group)
    if isinstance(arch, list) and all(type(value) is int and abs(value) < 1 << 15 for value in arch):
        return HeldOut.of(space, arch, group=group)
    raise SpecError(
        f"an arch is an object of the values of {space.name!r} by name, or a list of {len(space.variables)} value "
        f"numbers; got {arch!r:.80}"
    )
