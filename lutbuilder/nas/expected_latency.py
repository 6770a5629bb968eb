"""ExpectedLatency: the mean latency of a distribution over archs as a torch module, differentiable in the distribution.

The value assumes that variables are drawn independently, as one-shot searches draw them. The table is float64 and stays
so until the module is moved to another dtype, so float32 logits still give a sum exact to a double's rounding.
Source: Cai, Zhu, Han, ProxylessNAS, ICLR 2019, section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lutbuilder.nas.compiled import CompiledSpace, CostTable, Floats, Provenance, compile_space
from lutbuilder_agent.errors import ShapeError, SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lutbuilder.nas.packed import PackedArchs
    from lutbuilder.spaces.space import SearchSpace

Kind = Literal["logits", "probs"]
Choices = Tensor | Mapping[str, Tensor] | Iterable[Tensor]
_EXTRA_STATE = "_extra_state"  # the key torch itself files get_extra_state() under


class ExpectedLatency(nn.Module):
    """Expected milliseconds of the archs of `space` on the target `lut` speaks for; a module without parameters.

    With another `column` the result is in that column's unit. A network includes one call overhead unless turned off.
    A space with infeasible choices (a failed op, a constraint) is refused, because a softmax gives each of them some
    mass; with `allow_infeasible=True` the result is +inf wherever an infeasible choice has a positive probability, so
    give those logits of -inf. Raises OpNotInLut naming every op the table lacks.
    """

    site_costs: Tensor  # the state: every site's costs end to end; all other buffers follow from it
    call_overhead_ms: Tensor
    valid: Tensor  # (n_variables, most values): which entries of a padded tensor are values
    _padding: Tensor
    _fixed: Tensor
    _places: Tensor
    _costs: Tensor
    _forbidden: Tensor

    def __init__(
        self,
        lut: CostTable,
        space: SearchSpace,
        column: str = "latency_ms",
        *,
        include_call_overhead: bool = True,
        allow_infeasible: bool = False,
    ) -> None:
        super().__init__()
        compiled = compile_space(space, lut, column, include_call_overhead=include_call_overhead)
        self._allow_infeasible = allow_infeasible
        self._check_feasible(compiled)
        self.register_buffer("site_costs", torch.tensor(compiled.flat))
        self.register_buffer("call_overhead_ms", torch.tensor(compiled.call_overhead_ms, dtype=torch.float64))
        self._adopt(compiled)

    @property
    def compiled(self) -> CompiledSpace:
        """The same costs for numpy: exact bounds, expectation, prediction, provenance."""
        return self._compiled

    @property
    def shape(self) -> tuple[int, int]:
        """(n_variables, most values of any variable): the shape of padded logits, e.g. `torch.zeros(latency.shape)`."""
        return (len(self._compiled.space.sizes), max(self._compiled.space.sizes, default=0))

    def forward(self, choices: Choices, *, kind: Kind = "logits", validate: bool = True) -> Tensor:
        """Return the expected latency in ms, differentiable in `choices`.

        Shapes: `choices` is one padded tensor (..., n_variables, most values), which is fastest and whose padding is
        ignored, or a mapping by variable name, or a sequence in the variables' order, of tensors (..., values).
        Result (...), float64 unless the module was moved to another dtype. `kind="logits"` applies a softmax to each
        variable; `kind="probs"` takes probabilities: softmax, Gumbel, straight-through or `two_path_probs`.
        Raises ShapeError naming the variable; for probabilities that are negative or do not sum to 1, SpecError naming
        it, unless `validate=False` (worth it on a GPU, where looking at the values waits for the device).
        """
        if kind == "logits":
            probs = torch.softmax(self._padded(choices, -math.inf), dim=-1, dtype=self._costs.dtype)
        elif kind == "probs":
            probs = self._padded(choices, 0.0)
            if validate:
                self._check_probs(probs)
        else:
            raise SpecError(f"kind must be 'logits' or 'probs', got {kind!r}")
        mass = self._mass(probs)
        expected = mass @ self._costs + self._fixed
        if self._infeasible:
            with torch.no_grad():
                forbidden = mass @ self._forbidden
                penalty = torch.zeros_like(forbidden).masked_fill(forbidden > 0, math.inf)
            expected = expected + penalty
        return expected

    def predict(self, archs: NDArray[Any] | PackedArchs) -> Floats:
        """Return the latency of each arch in ms; see `CompiledSpace.predict`."""
        return self._compiled.predict(archs)

    def extra_repr(self) -> str:
        p = self._compiled.provenance
        return f"lut={p.lut!r}@{p.lut_version}, space={p.space!r}, column={p.column!r}"

    # --- State: which table and space the costs came from travels with them

    def get_extra_state(self) -> dict[str, Any]:
        """Return the provenance, in plain values that `torch.load(weights_only=True)` takes."""
        return asdict(self._compiled.provenance)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over the provenance of a state. Raises SpecError for a state of another space."""
        self._provenance = self._checked(state)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # torch loads buffers first and the extra state last; a state of another space must not get that far.
        if prefix + _EXTRA_STATE in state_dict:
            self._checked(state_dict[prefix + _EXTRA_STATE])
        super()._load_from_state_dict(state_dict, prefix, *args)
        flat = self.site_costs.detach().to("cpu", torch.float64).numpy().copy()
        loaded = self._compiled.with_costs(
            flat, call_overhead_ms=float(self.call_overhead_ms), provenance=self._provenance
        )
        self._check_feasible(loaded)
        self._adopt(loaded)

    def _checked(self, state: Mapping[str, Any]) -> Provenance:
        try:
            found = Provenance(**{**state, "evidence": tuple((str(k), int(n)) for k, n in state["evidence"])})
        except (KeyError, TypeError, ValueError) as error:
            raise SpecError(f"not the state of an ExpectedLatency: {error}") from error
        mine = self._compiled.provenance
        if (found.space_key, found.column) != (mine.space_key, mine.column):
            raise SpecError(
                f"this ExpectedLatency holds {mine.column} of space {mine.space!r} ({mine.space_key}), the state holds "
                f"{found.column} of {found.space!r} ({found.space_key}); build the module for that space and column"
            )
        return found

    def _check_feasible(self, compiled: CompiledSpace) -> None:
        if compiled.infeasible and not self._allow_infeasible:
            p = compiled.provenance
            raise SpecError(
                f"{p.lut}@{p.lut_version} cannot run {len(compiled.infeasible)} choices of space {p.space!r}: "
                f"{', '.join(compiled.infeasible)}. Give them logits of -inf and pass allow_infeasible=True"
            )

    # --- Buffers that follow from the costs

    def _adopt(self, compiled: CompiledSpace) -> None:
        """Take over `compiled`: every cell of every factor end to end, its cost and the places of its probabilities.

        A place is a position in the flattened padded probabilities. One gather and a few products over all cells beat
        a contraction a factor, whose overhead is that of a hundred times as many cells: 0.2 instead of 3 ms for
        AlphaNet's 15 factors.
        """
        self._compiled = compiled
        self._provenance = compiled.provenance
        self._infeasible = bool(compiled.infeasible)
        like = self.site_costs
        rows, columns = self.shape
        factors = compiled.factors
        axes = max((len(factor.scope) for factor in factors), default=1)
        costs = np.concatenate([np.empty(0), *(factor.values.ravel() for factor in factors)])
        places = np.full((axes, len(costs)), rows * columns)  # for an axis a factor lacks: behind them all, where 1 is
        start = 0
        for factor in factors:
            end = start + factor.values.size
            for axis, numbers in enumerate(np.indices(factor.values.shape)):
                places[axis, start:end] = factor.scope[axis] * columns + numbers.ravel()
            start = end
        if axes == 1:  # one variable a cell: laid out as the probabilities are, the costs need no gather
            costs, single = np.zeros(rows * columns), costs
            costs[places[0]] = single
            places = places[:0]
        infinite = np.isinf(costs)
        valid = np.arange(columns) < np.array(compiled.space.sizes)[:, None]
        self._derive("valid", torch.tensor(valid, device=like.device))
        self._derive("_padding", ~self.valid)
        self._derive("_fixed", like.new_tensor(compiled.fixed))
        self._derive("_places", torch.tensor(places.ravel(), device=like.device))
        self._derive("_costs", like.new_tensor(np.where(infinite, 0.0, costs)))
        self._derive("_forbidden", like.new_tensor(infinite))

    def _derive(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def _mass(self, probs: Tensor) -> Tensor:
        """Return the joint probability of every cell, shape (..., cells): the product over the cell's variables."""
        places, cells = self._places, len(self._costs)
        flat = probs.flatten(-2).to(self._costs.dtype)
        if not len(places):
            return flat
        gathered = nn.functional.pad(flat, (0, 1), value=1.0).index_select(-1, places)
        mass: Tensor
        mass, *others = gathered.view(*flat.shape[:-1], -1, cells).unbind(-2)
        for other in others:
            mass = mass * other
        return mass

    # --- Input

    def _padded(self, choices: Choices, padding: float) -> Tensor:
        if isinstance(choices, Tensor):
            if choices.shape[-2:] != self.shape:
                raise ShapeError(
                    f"padded choices of space {self._compiled.space.name!r} have shape (..., {self.shape[0]}, "
                    f"{self.shape[1]}): variables {self._names[0]} to {self._names[-1]}; got {tuple(choices.shape)}"
                )
            return choices.masked_fill(self._padding, padding)
        vectors = self._in_order(choices)
        batch = vectors[0].shape[:-1]
        wanted = [(*batch, size) for size in self._compiled.space.sizes]
        if [vector.shape for vector in vectors] != wanted:
            wrong = next(n for n, vector in enumerate(vectors) if vector.shape != wanted[n])
            variable = self._compiled.space.variables[wrong]
            raise ShapeError(
                f"{variable.name} needs shape {wanted[wrong]}, one entry for each of its values {variable.values}; "
                f"got {tuple(vectors[wrong].shape)}"
            )
        flat = torch.cat(vectors, dim=-1)
        return flat.new_full((*batch, *self.shape), padding).masked_scatter(self.valid, flat)

    def _in_order(self, choices: Any) -> list[Tensor]:
        # Asked for keys, not for Mapping: nn.ParameterDict is none, and nn.ParameterList is no Sequence.
        names = self._names
        if not hasattr(choices, "keys"):
            vectors = list(choices)
            if len(vectors) != len(names):
                raise ShapeError(f"one tensor for each of {len(names)} variables ({names[0]} ...), got {len(vectors)}")
            return vectors
        wrong = [name for name in names if name not in choices] or [name for name in choices if name not in names]
        if wrong:
            raise ShapeError(f"one tensor for each variable, by name; missing or unknown: {', '.join(wrong)}")
        return [choices[name] for name in names]

    def _check_probs(self, probs: Tensor) -> None:
        tolerance = 1e-3 if probs.dtype in (torch.float32, torch.float64) else 2e-2  # half precision sums coarsely
        with torch.no_grad():
            off = torch.maximum((probs.sum(-1) - 1).abs(), -probs.amin(-1))
            if off.numel() and not float(off.max()) <= tolerance:  # written so that NaN fails
                column = int(off.reshape(-1, off.shape[-1]).nan_to_num(nan=math.inf).amax(0).argmax())
                got = probs.reshape(-1, *self.shape)[:, column]
                raise SpecError(
                    f"probabilities of {self._names[column]} must be >= 0 and sum to 1, got {got.tolist()[:3]}; "
                    f"for logits leave kind='logits'"
                )

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(self._compiled.space.positions)


def two_path_probs(logits: Tensor, sampled: Tensor) -> Tensor:
    """Return probabilities renormalised over the sampled candidates of each variable; all others get exactly 0.

    Shapes: logits (..., values), sampled integers (..., paths), paths usually 2; result as logits. Gradients reach the
    sampled logits only. Source: Cai, Zhu, Han, ProxylessNAS, ICLR 2019, section 3.2.1.
    """
    if sampled.shape[:-1] != logits.shape[:-1] or not 1 <= sampled.shape[-1] <= logits.shape[-1]:
        raise ShapeError(
            f"sampled has shape (..., paths) over logits (..., values) with paths <= values; "
            f"got {tuple(sampled.shape)} and {tuple(logits.shape)}"
        )
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, sampled, True)
    return torch.softmax(logits.masked_fill(~kept, -math.inf), dim=-1)
