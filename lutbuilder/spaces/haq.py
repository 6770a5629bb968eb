"""HAQ's spaces: the bits of weights and activations of every layer of a MobileNet.

Variables wI and aI of layer I, 1 to 8 bits each; a site is one layer and reads both, for a cost is a full grid of them
and no product of two curves. The published table is of batch 16: `get("haq", batch=16)`.
Source: Wang, Liu, Lin, Lin, Han, HAQ, CVPR 2019, sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial

from lutbuilder.op import OpSpec
from lutbuilder.spaces.published import Layer, mobilenet_v1, mobilenet_v2
from lutbuilder.spaces.shapes import fixed
from lutbuilder.spaces.space import Assignment, SearchSpace, Site, Variable
from lutbuilder_agent.errors import UnknownName

BITS = (1, 2, 3, 4, 5, 6, 7, 8)
END_BITS = 8  # of the first and the last layer, unless they are free
_NETWORKS: Mapping[str, Callable[[], tuple[Layer, ...]]] = {"v2": mobilenet_v2, "v1": mobilenet_v1}
_FREE = "-free"


def haq(variant: str = "v2", *, batch: int = 1, name: str = "haq") -> SearchSpace:
    """Return the space of MobileNetV2 (53 layers, 1,858 ops) or V1 (28 layers, 1,154 ops).

    `v2-free` and `v1-free`: first and last layer have variables, too, not 8 bits of each (1,984 and 1,280 ops).
    """
    network = _NETWORKS.get(variant.removesuffix(_FREE))
    if network is None:
        known = ", ".join([*_NETWORKS, *(name + _FREE for name in _NETWORKS)])
        raise UnknownName(f"unknown variant {variant!r} of haq; known: {known}")
    layers = network()
    ends = () if variant.endswith(_FREE) else (0, len(layers) - 1)
    variables: list[Variable] = []
    sites: list[Site] = []
    for number, layer in enumerate(layers):
        op = layer.full_op(batch)
        if number in ends:
            sites.append(fixed(layer.name, _quantised(op, END_BITS, END_BITS), stage=layer.stage))
            continue
        scope = (f"w{number}", f"a{number}")
        variables += [Variable(name=bits, values=BITS) for bits in scope]
        sites.append(Site(name=layer.name, scope=scope, op=partial(_op, op, *scope), stage=layer.stage))
    return SearchSpace(name=name, variables=tuple(variables), sites=tuple(sites))


# A module-level function under `partial`, not a lambda: a supernet that holds the space can be pickled.
def _op(op: OpSpec, weights: str, activations: str, assignment: Assignment) -> OpSpec:
    return _quantised(op, int(assignment[weights]), int(assignment[activations]))


@lru_cache(maxsize=16_384)
def _quantised(op: OpSpec, w_bits: int, a_bits: int) -> OpSpec:
    return replace(op, w_bits=w_bits, a_bits=a_bits)
