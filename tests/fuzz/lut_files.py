"""Mutated LUT files against `Lut.load`: `python -m tests.fuzz.lut_files SEED COUNT`.

Every file is loaded in a child with little memory, so that a crash of the parquet engine shows as a child that died;
the next one goes on behind the file that did it. Prints a tally. Loading may end in one of our errors that names the
file, or in a table with the content hash of the one that was damaged; everything else is listed under `broken`.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from lutbuilder.lut import Lut, publish
from lutbuilder_agent.errors import LutbuilderError
from tests.fuzz.mutations import damaged, peak_bytes
from tests.lut_examples import example_meta, example_op, example_row

SLOWEST_S = 1.0
_PATIENCE_S = 300.0


def table(folder: Path) -> Lut:
    """Publish a table of 40 rows."""
    return publish([example_row(example_op(n)) for n in range(40)], example_meta(), folder=folder)


def mutated_file(raw: bytes, seed: int, number: int) -> bytes:
    """Return the file with that number; half of all damage is to the metadata at its end, which says where all is."""
    rng = random.Random(f"{seed}/{number}")
    if rng.random() < 0.5:
        size = int.from_bytes(raw[-8:-4], "little") + 8
        return raw[:-size] + damaged(raw[-size:], rng)
    return damaged(raw, rng)


def load_all(path: Path, seed: int, first: int, stop: int) -> None:
    """Child: load one file after another; say before each which it is, and after it what came of it."""
    raw = path.read_bytes()
    wanted = Lut.load(path).content_hash
    given = peak_bytes()
    target = path.with_name("damaged.parquet")
    for number in range(first, stop):
        print(json.dumps({"at": number}), flush=True)
        sent = mutated_file(raw, seed, number)
        target.write_bytes(sent)
        began_s = time.thread_time()
        try:
            lut = Lut.load(target)
            how = "the same table" if lut.content_hash == wanted else f"another table: {lut.content_hash}"
            if how == "the same table" and len(lut.rows()) != 40:
                how = f"{len(lut.rows())} rows under the same hash"
        except LutbuilderError as error:
            how = type(error).__name__ if str(target) in str(error) else f"does not name the file: {error}"
        except BaseException as error:  # whatever it is, it is the finding
            how = f"{type(error).__name__}: {error}"
        took_s = time.thread_time() - began_s
        if took_s > SLOWEST_S:
            how = f"took {took_s:.1f} s of CPU"
        print(json.dumps({"of": number, "how": how}), flush=True)
    peak = peak_bytes()
    print(json.dumps({"given": given, "peak": peak}), flush=True)


def fuzz(seed: int, files: int) -> dict[str, object]:
    """Return how many ended how, what broke, and the most memory a child has held beyond what it came with."""
    tally: Counter[str] = Counter()
    broken: dict[int, str] = {}
    peak, number = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(str(table(Path(folder)).path))
        while number < files:
            command = [sys.executable, "-m", "tests.fuzz.lut_files", "--child", str(path)]
            child = subprocess.run(
                [*command, str(seed), str(number), str(files)], capture_output=True, text=True, timeout=_PATIENCE_S
            )
            for line in child.stdout.splitlines():
                told = json.loads(line)
                number = max(number, told.get("at", 0))
                peak = max(peak, told.get("peak", 0))
                if "how" in told:
                    number = told["of"] + 1
                    if told["how"] in ("LutCorrupt", "LutTooNew", "the same table"):
                        tally[told["how"]] += 1
                    else:
                        broken[told["of"]] = told["how"]
            if child.returncode != 0:
                broken[number] = f"exit status {child.returncode}: {child.stderr[-300:]}"
                number += 1
    return {"files": tally, "broken": broken, "peak_bytes": peak}


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        load_all(Path(sys.argv[2]), *map(int, sys.argv[3:6]))
    else:
        print(json.dumps(fuzz(*map(int, sys.argv[1:3]))))
