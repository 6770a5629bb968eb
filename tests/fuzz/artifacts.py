"""Mutated artifacts against a worker: `python -m tests.fuzz.artifacts SEED COUNT`, COUNT over all three formats.

Every artifact is given to the cache under the hash of the good one, which has to refuse it, and to a worker under its
own, as a coordinator that is wrong might send it: there the engine's parser meets it, in the child. Prints a tally of
failure reasons; the parent has to live, to answer for every op, and to stay as small as it was.
"""

from __future__ import annotations

import hashlib
import json
import random
import resource
import sys
import tempfile
from collections import Counter
from pathlib import Path

from lutbuilder.artifacts import artifact_ref
from lutbuilder.lower import lower
from lutbuilder_agent.cache import ArtifactCache
from lutbuilder_agent.errors import ArtifactCorrupt
from lutbuilder_agent.records import Format, LeasedOp, Plan
from lutbuilder_agent.runtimes.probe import probe_artifact
from lutbuilder_agent.worker import Worker
from tests.fuzz.mutations import damaged, mutated_message, peak_bytes
from tests.lut_examples import example_op

_RUNTIMES: tuple[tuple[str, Format], ...] = (("simulated", "graph"), ("onnxruntime", "onnx"), ("litert", "tflite"))
_LEASE = 50
_OURS_BYTES = 4 << 30  # what a child may take: a damaged shape asks for any amount


def mutated_artifact(raw: bytes, format: Format, rng: random.Random) -> bytes:
    """Return other bytes than `raw`. An ONNX file is a protobuf message and is torn as one."""
    while True:
        made = mutated_message(raw, rng, (raw,)) if format == "onnx" and rng.random() < 0.5 else damaged(raw, rng)
        if made != raw and made:
            return made


def refused_by_cache(folder: Path, raw: bytes, made: bytes, format: Format) -> bool:
    """Whether an agent that was promised `raw` and sent `made` says so and keeps nothing."""
    cache, ref = ArtifactCache(folder / "cache"), artifact_ref(raw, format)
    try:
        cache.get(ref, lambda offset: iter([made[offset:]]))
    except ArtifactCorrupt:
        return not list(cache.folder.iterdir())
    return False


def measured(folder: Path, runtime: str, format: Format, artifacts: list[bytes]) -> list[str]:
    """Return what became of each: a failure's reason, or "measured". A good artifact goes last and has to be."""
    ops = []
    for number, raw in enumerate(artifacts):
        path = folder / hashlib.sha256(raw).hexdigest()
        path.write_bytes(raw)
        ops.append((LeasedOp(op_id=f"op-{number}", artifact=artifact_ref(raw, format)), path))
    plan = Plan(
        runtime=runtime, train_ops=1, cache="hot", instances=1, min_block_ns=1_000, max_calls=4, warmup_calls=1,
        op_timeout_ns=3_000_000_000,
    )  # fmt: skip  # reads as one record
    with Worker(plan) as worker:
        failures = list(worker.prepare(ops))
        seen = worker.run_round(0)
        failures += seen.failures
    fate = {failure.op_id: failure.reason for failure in failures}
    timed = {timing.op_id for timing in seen.timings}
    assert not timed & set(fate), "an op is measured or has failed"
    return [fate.get(op.op_id) or ("measured" if op.op_id in timed else "nothing") for op, _ in ops]


def fuzz(seed: int, artifacts: int) -> dict[str, object]:
    """Return how many ended how by runtime, and how much the parent has grown since its first lease."""
    resource.setrlimit(resource.RLIMIT_DATA, (_OURS_BYTES, _OURS_BYTES))
    tally: dict[str, Counter[str]] = {runtime: Counter() for runtime, _ in _RUNTIMES}
    began = 0
    for runtime, format in _RUNTIMES:
        raw = lower(example_op()).to_bytes() if format == "graph" else probe_artifact(format)
        share = artifacts // len(_RUNTIMES)
        for first in range(0, share, _LEASE):
            rng = random.Random(f"{seed}/{runtime}/{first}")
            made = [mutated_artifact(raw, format, rng) for _ in range(min(_LEASE, share - first))]
            with tempfile.TemporaryDirectory() as folder:
                for each in made:
                    assert refused_by_cache(Path(folder), raw, each, format), each[:2000].hex()
                *fates, good = measured(Path(folder), runtime, format, [*made, raw])
            assert good == "measured", f"a good artifact among bad ones of {runtime}, lease {first}: {good}"
            tally[runtime].update(fates)
            began = began or peak_bytes()
    grown = peak_bytes() - began
    return {"artifacts": tally, "grown_bytes": grown}


if __name__ == "__main__":
    print(json.dumps(fuzz(*map(int, sys.argv[1:3]))))
