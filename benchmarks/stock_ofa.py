"""The other side of bench_ofa.py: the stock `ofa` package, in an environment of its own (tools/ofa_venv.py).

    python stock_ofa.py FOLDER WIDTH        # FOLDER holds <resolution>_lookup_table.yaml

Reads a question a line from stdin, {"contestant": "LatencyTable" or "Mbv3LatencyModel", "archs": [...]}, where an arch
is {"r": resolution, "d": 5 depths, "ks": 20 kernels, "e": 20 expansions}; writes a line each to stdout, {"cpu_s": ...,
"ms": [...]}. Only the calls of the package are timed, in CPU seconds of this process; its inputs are made before.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3
from ofa.nas.efficiency_predictor import Mbv3LatencyModel
from ofa.tutorial.latency_table import LatencyEstimator, LatencyTable


def main() -> None:
    """Open the tables, say so, and answer until stdin ends."""
    torch.set_num_threads(1)
    folder, width = Path(sys.argv[1]), float(sys.argv[2])
    resolutions = sorted(int(path.name.split("_")[0]) for path in folder.glob("*_lookup_table.yaml"))
    # Its constructor reads fixed web addresses and nothing else; everything after it is as released.
    table = LatencyTable.__new__(LatencyTable)
    table.latency_tables = {r: LatencyEstimator(url=str(folder / f"{r}_lookup_table.yaml")) for r in resolutions}
    net = OFAMobileNetV3(width_mult=width, ks_list=[3, 5, 7], expand_ratio_list=[3, 4, 6], depth_list=[2, 3, 4])
    model = Mbv3LatencyModel(net, dict.fromkeys(resolutions, str(folder)))

    def spec(arch: dict[str, Any]) -> dict[str, Any]:
        return {**arch, "r": [arch["r"]]}

    def sample(arch: dict[str, Any]) -> dict[str, Any]:
        return {"image_size": arch["r"], **{name: arch[name] for name in ("d", "ks", "e")}}

    contestants = {"LatencyTable": (spec, table.predict_efficiency), "Mbv3LatencyModel": (sample, model.get_efficiency)}
    answer({"resolutions": resolutions})
    for line in sys.stdin:
        question = json.loads(line)
        prepare, predict = contestants[question["contestant"]]
        inputs = [prepare(arch) for arch in question["archs"]]
        start = time.process_time()
        ms = [predict(each) for each in inputs]
        answer({"cpu_s": time.process_time() - start, "ms": ms})


def answer(body: dict[str, Any]) -> None:
    """Write one line."""
    print(json.dumps(body), flush=True)


if __name__ == "__main__":
    main()
