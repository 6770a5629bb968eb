"""ExpectedLatency: the mean latency of a distribution over archs as a torch module, differentiable in the distribution.

The value assumes that variables are drawn independently, as one-shot searches draw them, and that draws which break a
constraint are drawn again. The table is float64 and stays so until the module is moved to another dtype, so float32
logits still give a sum exact to a double's rounding.
Source: Cai, Zhu, Han, ProxylessNAS, ICLR 2019, section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from torch import Tensor, nn

from lutbuilder.nas.compiled import CompiledSpace, CostTable, Floats, Provenance, compile_space
from lutbuilder.spaces.eliminate import Factor, merged, reduced
from lutbuilder_agent.errors import ShapeError, SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lutbuilder.nas.packed import PackedArchs
    from lutbuilder.nas.uncertainty import Interval
    from lutbuilder.spaces.space import SearchSpace

Kind = Literal["logits", "probs"]
Scope = tuple[int, ...]
Choices = Tensor | Mapping[str, Tensor] | Iterable[Tensor]
_EXTRA_STATE = "_extra_state"  # the key torch itself files get_extra_state() under


class ExpectedLatency(nn.Module):
    """Expected milliseconds of the archs of `space` on the target `lut` speaks for; a module without parameters.

    With another `column` the result is in that column's unit. A network includes one call overhead unless turned off.
    It is the mean over the archs that the space allows: what breaks a constraint has no share in it, and the rest is
    renormalised. A table where an op failed is refused, because the mean over the others would not lead a search away
    from it; with `allow_infeasible=True` such archs are left out likewise, so give that op logits of -inf. The result
    is +inf only where no arch that can run has a positive probability. Raises OpNotInLut naming every op the table
    lacks.
    """

    site_costs: Tensor  # the state: every site's costs end to end; all other buffers follow from it
    call_overhead_ms: Tensor
    valid: Tensor  # (n_variables, most values): which entries of a padded tensor are values
    _padding: Tensor
    _places: Tensor
    _costs: Tensor
    _allowed: Tensor

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
        return self._shape

    def forward(self, choices: Choices, *, kind: Kind = "logits", validate: bool = True) -> Tensor:
        """Return the expected latency in ms, differentiable in `choices`.

        Shapes: `choices` is one padded tensor (..., n_variables, most values), which is fastest and whose padding is
        ignored, or a mapping by variable name, or a sequence in the variables' order, of tensors (..., values).
        Result (...), float64 unless the module was moved to another dtype. `kind="logits"` applies a softmax to each
        variable; `kind="probs"` takes probabilities: softmax, Gumbel, straight-through or `two_path_probs`.
        Raises ShapeError naming the variable; for probabilities that are negative or do not sum to 1, SpecError naming
        it, unless `validate=False` (worth it on a GPU, where looking at the values waits for the device).
        """
        costs = self._costs
        if kind == "logits":
            probs = torch.softmax(self._padded(choices, -math.inf), dim=-1, dtype=costs.dtype)
        elif kind == "probs":
            probs = self._padded(choices, 0.0)
            if validate:
                self._check_probs(probs)
            probs = probs.to(costs.dtype)
        else:
            raise SpecError(f"kind must be 'logits' or 'probs', got {kind!r}")
        if self._tables:
            return self._mean_of_allowed(probs)
        return (self._mass(probs) if self._gathers else probs.flatten(-2)) @ costs

    @overload
    def predict(self, archs: NDArray[Any] | PackedArchs, *, return_interval: Literal[False] = False) -> Floats: ...
    @overload
    def predict(self, archs: NDArray[Any] | PackedArchs, *, return_interval: Literal[True]) -> Interval: ...
    def predict(self, archs: NDArray[Any] | PackedArchs, *, return_interval: bool = False) -> Floats | Interval:
        """Return the latency of each arch in ms, with `return_interval` (mid, lo, hi); see `CompiledSpace.predict`.

        `compiled.uncertainty.surely_below(archs, limit, confidence=0.95)` keeps those below a limit at a confidence, as
        `lutbuilder search --confidence` does.
        """
        if return_interval:
            return self._compiled.predict(archs, return_interval=True)
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
        space = compiled.space
        self._names = tuple(space.positions)
        rows, columns = self._shape = (len(space.sizes), max(space.sizes))
        self._shapes = [(size,) for size in space.sizes]
        self._gaps = [columns - size for size in space.sizes]
        self._gap_sizes = {*self._gaps} - {0}
        # Probabilities sum to 1, so what every arch pays may as well be a cost of each value of the first variable.
        every_arch = Factor(scope=(0,), values=np.full(space.sizes[0], compiled.fixed))
        factors = merged([every_arch, *compiled.factors])
        axes = max(len(factor.scope) for factor in factors)
        costs = np.concatenate([factor.values.ravel() for factor in factors])
        allowed = np.isfinite(costs)
        places = np.full((axes, len(costs)), rows * columns)  # for an axis a factor lacks: behind them all, where 1 is
        tables = []
        end = 0
        for factor in factors:
            cells = slice(end, end := end + factor.values.size)
            for axis, numbers in enumerate(np.indices(factor.values.shape)):
                places[axis, cells] = factor.scope[axis] * columns + numbers.ravel()
            tables.append((factor.scope, cells, factor.values.shape))
        self._tables: list[tuple[Scope, slice, tuple[int, ...]]] = []
        self._order: list[Scope] = []  # the last variable of each is summed out next
        if not allowed.all():
            trail: list[Factor] = []
            reduced(factors, combine=np.add, reduce=np.minimum, trail=trail)
            self._tables, self._order = tables, [joint.scope for joint in trail]
        self._gathers = axes > 1
        if axes == 1 and not self._tables:  # laid out as the probabilities are, the costs need no gather
            costs, single = np.zeros(rows * columns), costs
            costs[places[0]] = single
        valid = np.arange(columns) < np.array(space.sizes)[:, None]
        like = self.site_costs
        self._derive("valid", torch.tensor(valid, device=like.device))
        self._derive("_padding", ~self.valid)
        self._derive("_places", torch.tensor(places.ravel(), device=like.device))
        self._derive("_costs", like.new_tensor(np.where(np.isinf(costs), 0.0, costs)))
        self._derive("_allowed", like.new_tensor(allowed))

    def _derive(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def _mass(self, probs: Tensor) -> Tensor:
        """Return the joint probability of every cell, shape (..., cells): the product over the cell's variables."""
        flat = nn.functional.pad(probs.flatten(-2), (0, 1), value=1.0)
        gathered = flat.index_select(-1, self._places).view(*flat.shape[:-1], -1, len(self._costs))
        mass: Tensor
        mass, *others = gathered.unbind(-2)
        for other in others:
            mass = mass * other
        return mass

    def _mean_of_allowed(self, probs: Tensor) -> Tensor:
        """Return the mean cost of the archs that can run, shape (...); +inf where none has a chance.

        One variable after the other is summed out of tables of pairs: the chance that a draw is allowed, and the mean
        cost of the allowed draws times that chance; the first axis has the two.
        Source: for the pairs, Li and Eisner, First- and second-order expectation semirings, EMNLP 2009.
        """
        drawn = probs.reshape(-1, *self._shape)
        flat = torch.stack((self._allowed, self._costs))
        tables = [(scope, flat[:, cells].view(2, 1, *shape)) for scope, cells, shape in self._tables]
        for joint in self._order:
            variable = joint[-1]
            pairs = reduce(_product, (_spread(table, scope, joint) for scope, table in tables if variable in scope))
            chances = drawn[:, variable, : pairs.shape[-1]]
            summed = (pairs * chances.view(len(drawn), *[1] * (len(joint) - 1), -1)).sum(-1)
            tables = [table for table in tables if variable not in table[0]] + [(joint[:-1], summed)]
        chance, cost = torch.stack([table for _, table in tables], dim=1)  # of parts that share no variable
        possible = chance > 0
        mean = torch.where(possible, cost / torch.where(possible, chance, 1.0), math.inf)
        return mean.sum(0).view(probs.shape[:-2])

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
        wanted = [(*batch, *shape) for shape in self._shapes] if batch else self._shapes
        if [vector.shape for vector in vectors] != wanted:
            wrong = next(n for n, vector in enumerate(vectors) if vector.shape != wanted[n])
            variable = self._compiled.space.variables[wrong]
            raise ShapeError(
                f"{variable.name} needs shape {wanted[wrong]}, one entry for each of its values {variable.values}; "
                f"got {tuple(vectors[wrong].shape)}"
            )
        # One call: to visit 21 tensors backward takes autograd 0.1 ms as it is.
        gaps = {gap: vectors[0].new_full((*batch, gap), padding) for gap in self._gap_sizes}
        parts = []
        for vector, gap in zip(vectors, self._gaps, strict=True):
            parts.append(vector)
            if gap:
                parts.append(gaps[gap])
        return torch.cat(parts, dim=-1).view(*batch, *self._shape)

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


def _spread(pairs: Tensor, scope: Scope, onto: Scope) -> Tensor:
    """Return a table with an axis for each variable of `onto`, of length 1 where its own `scope` lacks it."""
    pairs = pairs.permute(0, 1, *(2 + scope.index(variable) for variable in onto if variable in scope))
    axes = (slice(None), slice(None), *(slice(None) if variable in scope else None for variable in onto))
    return pairs[axes]


def _product(one: Tensor, other: Tensor) -> Tensor:
    (chance, cost), (its_chance, its_cost) = one, other
    return torch.stack((chance * its_chance, chance * its_cost + cost * its_chance))


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
