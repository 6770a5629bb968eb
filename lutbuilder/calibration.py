"""`calibrate`: correct a table by whole networks, or make one of another device's table; both stay plain sums of rows.

The networks are drawn from a stream of their own, none of them one that a validation of the table used or would use,
and from then on no validation of it uses them. The table's carriers are timed again beside them: they say what this
session does to networks (docs/decisions/0009).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lutbuilder.campaign.calibrated import (
    Calibrated,
    calibrate_rows,
    transfer_rows,
    with_calibration,
)
from lutbuilder.campaign.carriers import carriers_of, on_carriers_scale
from lutbuilder.campaign.collect import (
    draft,
    newest,
    publish_draft,
    runtime_version,
    silicon,
    unpublished,
)
from lutbuilder.campaign.draft import Draft
from lutbuilder.campaign.host import ALONE, Host, Opening
from lutbuilder.campaign.plan import campaign_ops, make_plan
from lutbuilder.campaign.request import CalibrateOutcome, CalibrateRequest, OnProgress, ValidateRequest
from lutbuilder.campaign.spec import CampaignOp, CampaignSpec, Target
from lutbuilder.networks import choose
from lutbuilder.stats.calibrate import LEAST_NETWORKS
from lutbuilder_agent.errors import Interrupted, LutConflict, LutError, SpecError

if TYPE_CHECKING:
    from lutbuilder.coordinator.store import AgentState, CampaignState, Store
    from lutbuilder.lut import Lut
    from lutbuilder.spaces import SearchSpace

_SEED = 0xCA11B8A7  # a stream of its own: a validation with the same seed shares no draw
_MOST_OPS = 300  # of a table that are timed beside the networks: they tell the machine's speed, and a round stays short


def calibrate(request: CalibrateRequest, on_progress: OnProgress, *, opening: Opening = ALONE) -> CalibrateOutcome:
    """Time networks, fit the table to them, publish the next version, and return it with the report.

    With `request.source` no op is timed: the rows come from that table of another device of the same class. Killed and
    called again with an equal request, it continues; called again after it has published, it takes further networks and
    fits all of them. Raises what `collect` raises; SpecError for too few networks; LutConflict if this device is not
    the one the LUT speaks for, or works in another way than the one whose table it was to take over.
    """
    if (request.lut is None) == (request.source is None):
        raise SpecError("name the table to calibrate, or with --from the table of another device to start from")
    if request.n_networks < LEAST_NETWORKS:
        raise SpecError(f"a calibration needs at least {LEAST_NETWORKS} networks: --nets 16")
    try:
        way = _calibrate if request.lut is not None else _transfer
        return way(request, on_progress, opening)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted; every acknowledged visit is kept: the same command continues where this one stopped"
        ) from None


def _calibrate(request: CalibrateRequest, on_progress: OnProgress, opening: Opening) -> CalibrateOutcome:
    from lutbuilder.lut import Lut, merge
    from lutbuilder.lut.calibrated import sources

    base = Lut.load(str(request.lut), folder=request.luts)
    luts = base.path.parent.parent.parent  # the folder the LUT was found in, whatever --luts says
    target = base.meta.target
    device = opening.device(target.device)
    space = _space(request, base, opening)
    known = sources(base.rows())
    measured = tuple(op for op in space.ops() if op.op_id in known and known[op.op_id].status == "measured")
    if not measured:
        raise LutConflict(
            f"{base.spec} has no measured op of space {space.name!r}: there is nothing to correct. Measure them: "
            f"lutbuilder collect --space {space.name} --runtime {target.runtime}"
        )
    with opening.host(
        device, target.runtime, listen="127.0.0.1:0", state_dir=request.state_dir, on_progress=on_progress
    ) as host:
        agent = host.find_agent(device, target.runtime, wait_s=None)
        if agent.fingerprint.env_id != base.meta.fingerprint.env_id:
            raise LutConflict(
                f"{base.spec} was measured in another environment ({base.meta.fingerprint.env_id}, this is "
                f"{agent.fingerprint.env_id}): measure anew: lutbuilder collect --runtime {target.runtime} "
                "--new-conditions"
            )
        networks = choose_networks(
            space,
            base,
            n=request.n_networks,
            seed=request.seed,
            avoid={*base.meta.fitted_networks, *validated(base, host.store), *reserved(space, base)},
        )
        host.tell("preparing", f"{len(networks)} networks to calibrate with")
        spec = CampaignSpec(
            space=space.name,
            target=target,
            plan=replace(base.meta.plan, seed=request.seed, instances=request.instances or base.meta.plan.instances),
            env_id=agent.fingerprint.env_id,
            runtime_version=runtime_version(agent, target.runtime),
            ops=(*campaign_ops(measured, measured[:: -(-len(measured) // _MOST_OPS)]), *carriers_of(base), *networks),
            budget_s=request.budget_s,
            precision=0.01,
            max_rounds=request.rounds,
            lease_rounds=request.lease_rounds,
            purpose="calibrate",
        )
        state, made = _measured(host, spec, agent, base)
        merged, _ = merge(base, made.rows, made.meta)
        ids = {network.op_id for network in networks} | set(base.meta.fitted_networks)
        names = sorted({space.name, *(base.meta.calibration or {}).get("spaces", ())})
        calibrated = calibrate_rows(
            merged,
            [op for op in made.evidence.ops if op.role == "carrier" or (op.is_whole and op.op_id in ids)],
            on_carriers_scale(made.evidence.ops, made.summary),
            covered=dict.fromkeys(op for name in names for op in opening.space(name, batch=target.batch).ops()),
            table=f"{base.name}@{base.version}",
            spaces=names,
        )
        lut = publish_draft(host, with_calibration(made, calibrated), luts=luts, base=base)
        if lut.meta.calibration is None:
            raise LutError(
                f"{lut.spec} has no calibrated rows: somebody else published other measured rows meanwhile. Every "
                "visit is kept; type the same command again"
            )
        return _outcome(host, state, lut, calibrated)


def _transfer(request: CalibrateRequest, on_progress: OnProgress, opening: Opening) -> CalibrateOutcome:
    from lutbuilder.lut import Lut

    source = Lut.load(str(request.source), folder=request.luts)
    here = source.meta.target
    device = opening.device(request.device)
    space = _space(request, source, opening)
    made_like = replace(
        make_plan(
            here.runtime,
            threads=here.threads,
            cache=here.cache,
            instances=request.instances or source.meta.plan.instances,
            seed=request.seed,
            options=(*device.options, *request.runtime_options),
        ),
        train_ops=source.meta.plan.train_ops,
    )
    kinds = [dict(plan.options).get("device", "cpu") for plan in (source.meta.plan, made_like)]
    if kinds[0] != kinds[1]:
        raise LutConflict(
            f"{source.spec} is of a {kinds[0]}, {device.title} is a {kinds[1]}: rows carry over between devices of one "
            f"class only. Measure the ops: {_collect(request, space, here)}"
        )
    listen = request.listen or ("127.0.0.1:0" if device.local else "127.0.0.1:7070")
    with opening.host(
        device, here.runtime, listen=listen, state_dir=request.state_dir, on_progress=on_progress
    ) as host:
        agent = host.find_agent(device, here.runtime, wait_s=request.wait_s)
        target = Target(
            device=silicon(agent.fingerprint, here.runtime, dict(made_like.options)),
            runtime=here.runtime,
            dtype=here.dtype,
            batch=here.batch,
            threads=here.threads,
            cache=here.cache,
        )
        base = newest(target.lut_name, request.luts)
        if base is not None and any(row.evidence == "measured" for row in base.rows()):
            raise LutConflict(
                f"{base.spec} has rows measured on this very device: they are worth more than those of another one. "
                f"Correct them: lutbuilder calibrate {base.path.parent}"
            )
        avoid = set() if base is None else {*validated(base, host.store), *reserved(space, base)}
        networks = choose_networks(space, source, n=request.n_networks, seed=request.seed, avoid=avoid)
        host.tell("preparing", f"{len(networks)} networks to scale {source.name}@{source.version} with")
        spec = CampaignSpec(
            space=space.name,
            target=target,
            plan=made_like,
            env_id=agent.fingerprint.env_id,
            runtime_version=runtime_version(agent, here.runtime),
            ops=networks,
            budget_s=request.budget_s,
            precision=0.01,
            max_rounds=request.rounds,
            lease_rounds=request.lease_rounds,
            purpose="calibrate",
        )
        state, made = _measured(host, spec, agent, base)
        calibrated = transfer_rows(
            source,
            networks,
            made.summary.by_id,
            covered=space.ops(),
            cache=target.cache,
            collect=_collect(request, space, target),
            spaces=[space.name],
            worst=request.worst,
        )
        made = with_calibration(replace(made, rows=()), calibrated)
        # A base made of another device's rows holds nothing that was measured: it may be left behind.
        lut = publish_draft(host, made, luts=request.luts, base=base, new_conditions=True)
        return _outcome(host, state, lut, calibrated)


def _space(request: CalibrateRequest, lut: Lut, opening: Opening) -> SearchSpace:
    if not (request.space or lut.meta.spaces):
        raise SpecError(f"{lut.spec} does not say which space it covers: --space NAME")
    return opening.space(request.space or lut.meta.spaces[0], batch=lut.meta.target.batch)


def _measured(host: Host, spec: CampaignSpec, agent: AgentState, base: Lut | None) -> tuple[CampaignState, Draft]:
    state = host.run(unpublished(spec, host.store, base))
    return state, draft(host, state, agent)


def _outcome(host: Host, state: CampaignState, lut: Lut, calibrated: Calibrated) -> CalibrateOutcome:
    return CalibrateOutcome(report=calibrated.report, lut=lut, rounds=state.rounds, wall_s=host.elapsed_s())


def _collect(request: CalibrateRequest, space: SearchSpace, target: Target) -> str:
    from lutbuilder.lut import collect_command

    return collect_command(
        device=request.device,
        space=space.name,
        runtime=target.runtime,
        batch=target.batch,
        threads=target.threads,
    )


# --- Which networks


def choose_networks(
    space: SearchSpace, lut: Lut, *, n: int, seed: int, avoid: Collection[str]
) -> tuple[CampaignOp, ...]:
    """Return `n` random networks spread evenly over the space's latency range, none of which is one of `avoid` (ids).

    Fixed by the arguments. Not picked by an optimal design: that takes the extremes, where networks are least like
    sums of their ops. Raises SpecError if the space has too few.
    """
    from lutbuilder.nas.compiled import compile_space
    from lutbuilder.nas.sampling import spread_archs

    taken = set(avoid)
    chosen: list[CampaignOp] = []

    def accept(arch: Sequence[int]) -> bool:
        network = CampaignOp.network(space.arch_ops(arch))
        new = network.op_id not in taken  # two archs may be one network: where a layer is left out
        taken.add(network.op_id)
        if new:
            chosen.append(network)
        return new

    spread_archs(compile_space(space, lut), n, np.random.default_rng([seed, _SEED]), accept)
    return tuple(chosen)


def reserved(space: SearchSpace, lut: Lut) -> set[str]:
    """Return the ids of the networks that `lutbuilder validate` would check the table with, as it is now."""
    usual = ValidateRequest(lut=lut.spec)
    try:
        networks = choose(
            space,
            lut,
            n_random=usual.n_random,
            n_searched=usual.n_searched,
            seed=usual.seed,
            avoid=lut.meta.fitted_networks,
        )
    except SpecError:  # a small space has fewer; a validation will be asked for those that are left
        return set()
    return {network.op_id for network in networks}


def validated(lut: Lut, store: Store) -> set[str]:
    """Return the ids of the networks that any version of the table was checked with, published or only timed."""
    checked = {
        op.op_id
        for campaign in store.campaigns()
        if campaign.spec.purpose == "validate" and campaign.spec.target == lut.meta.target
        for op in campaign.spec.ops
        if op.role == "network"
    }
    return checked.union(*_published(lut))


def _published(lut: Lut) -> Iterator[set[str]]:
    from lutbuilder.lut import list_luts
    from lutbuilder.lut.store import read_lut

    for entry in list_luts(lut.path.parent.parent.parent):
        if entry.name == lut.name:
            for version in entry.versions:
                _, meta = read_lut(entry.path(version))
                yield {network["op_id"] for network in (meta.validation or {}).get("networks", ())}
