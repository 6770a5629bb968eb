"""What the stock `ofa` package predicts from tables in a folder; run by the Python that tools/ofa_venv.py builds.

Reads a JSON object on stdin: net (mbv3 or proxyless), width, folder, resolutions, archs (ks, e, d, image_size each).
Prints one: ms of every arch by each entry point of the package, null where it has none for that net.
"""

import json
import sys
import warnings

warnings.simplefilter("ignore")  # it calls yaml.load without a loader, and says so every time

from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3, OFAProxylessNASNets  # noqa: E402  # as above
from ofa.nas.efficiency_predictor import (  # noqa: E402  # as above
    Mbv3LatencyModel,
    MBv3LatencyTable,
    ProxylessNASLatencyModel,
    ProxylessNASLatencyTable,
)
from ofa.tutorial.latency_table import LatencyEstimator  # noqa: E402  # as above

NETS = {
    "mbv3": (OFAMobileNetV3, Mbv3LatencyModel, MBv3LatencyTable),
    "proxyless": (OFAProxylessNASNets, ProxylessNASLatencyModel, ProxylessNASLatencyTable),
}


def main() -> None:
    """Predict what stdin asks for."""
    asked = json.load(sys.stdin)
    net_class, model_class, table_class = NETS[asked["net"]]
    net = net_class(width_mult=asked["width"], ks_list=[3, 5, 7], expand_ratio_list=[3, 4, 6], depth_list=[2, 3, 4])
    folder, archs = asked["folder"], asked["archs"]
    model = model_class(net, {r: folder for r in asked["resolutions"]})
    found = {"model": [model.get_efficiency(arch) for arch in archs], "table": [], "estimator": None}
    tables = {}
    for arch in archs[: asked["n_built"]]:  # as a network of its own, built and walked through
        r = arch["image_size"]
        tables[r] = tables.get(r) or table_class(url=f"{folder}/{r}_lookup_table.yaml")
        net.set_active_subnet(ks=arch["ks"], e=arch["e"], d=arch["d"])
        found["table"].append(tables[r].predict_network_latency(net.get_active_subnet(preserve_weight=False), r))
    if asked["net"] == "mbv3" and asked["width"] == 1.2:  # the tutorial knows these widths alone
        estimators = {r: LatencyEstimator(url=f"{folder}/{r}_lookup_table.yaml") for r in asked["resolutions"][::8]}
        found["estimator"] = [
            estimators[arch["image_size"]].predict_network_latency_given_spec({**arch, "r": [arch["image_size"]]})
            if arch["image_size"] in estimators
            else None
            for arch in archs
        ]
    json.dump(found, sys.stdout)


main()
