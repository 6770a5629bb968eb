"""First search code: find a ProxylessNAS network that meets a latency target on a measured device.

    python examples/search_proxyless.py luts/<device>/onnxruntime-fp32-bs1 --target-ms 8

A search needs two things from each candidate network: how good it is, and what it costs. lutbuilder gives the second,
as a differentiable number. For the first this example has a stand-in (more arithmetic is better, with diminishing
returns); in your search it is the loss of a supernet on a batch of images.
"""

from __future__ import annotations

import argparse
import math

import torch

from lutbuilder import ExpectedLatency, Lut
from lutbuilder.lower import lower
from lutbuilder.nas.compiled import FunctionTable
from lutbuilder.nas.losses import hinge
from lutbuilder.spaces import get


def main() -> None:
    """Search, then print the network and what the table says it costs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("lut", help="table to search with, e.g. luts/<device>/onnxruntime-fp32-bs1")
    parser.add_argument("--target-ms", type=float, default=8.0)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()

    space = get("proxyless")
    latency = ExpectedLatency(Lut.load(options.lut), space)  # milliseconds; every op of the space looked up once
    macs = ExpectedLatency(FunctionTable(name="macs", cost=lambda op: lower(op).macs / 1e6), space)  # millions

    torch.manual_seed(0)
    logits = torch.nn.Parameter(1e-3 * torch.randn(latency.shape))  # a row a layer, a column a candidate op
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for step in range(options.steps):
        optimizer.zero_grad()
        expected_ms = latency(logits)
        task_loss = 1.0 / torch.log(math.e + macs(logits) / 100)  # stand-in for your supernet's loss
        loss = hinge(task_loss, expected_ms, options.target_ms, weight=2.0)
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step:4d}  task loss {task_loss.item():.4f}  expected {expected_ms.item():.3f} ms")

    arch = logits.masked_fill(~latency.valid, -math.inf).argmax(dim=-1).numpy()
    for name, choice in space.decode(arch).items():
        print(f"{name:8s} {choice}")
    print(f"predicted {latency.predict(arch[None])[0]:.3f} ms for a target of {options.target_ms:g} ms")


if __name__ == "__main__":
    main()
