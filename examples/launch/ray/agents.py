"""Start a lutbuilder agent on every matching node of a Ray cluster; each dials out to the coordinator.

    ray job submit --address http://HEAD:8265 --working-dir . -- \\
        python agents.py --coordinator lab:7070 --nodes 4 --cpus 2 --resource measure=1

One agent a node (placement group, STRICT_SPREAD), with the node's CPUs or custom resource reserved so that Ray runs
nothing else of yours there. Ends when every agent has ended; Ctrl-C, or `ray job stop`, lets each finish its round.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

_GRACE_S = 60  # to finish a round


@ray.remote(max_restarts=-1, max_task_retries=0)
class Node:
    """The agent of a node, in a process of its own. A node that comes back starts it again."""

    def __init__(self, command: list[str], name: str) -> None:
        import platform

        self._name = f"{name}-{platform.node()}" if name else platform.node()
        self._process = subprocess.Popen([*command, "--name", self._name])

    def state(self) -> tuple[str, int | None]:
        """Return the agent's name and its exit status, None while it runs."""
        return self._name, self._process.poll()

    def stop(self) -> int:
        """Tell it to end after its round; return its exit status."""
        self._process.terminate()
        try:
            return self._process.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--coordinator", required=True, metavar="HOST:PORT")
    parser.add_argument("--nodes", type=int, default=1, help="how many")
    parser.add_argument("--cpus", type=float, default=1, help="to reserve on each")
    parser.add_argument("--gpus", type=float, default=0, help="to reserve on each")
    parser.add_argument(
        "--resource", action="append", default=[], metavar="NAME=AMOUNT", help="a custom one, e.g. measure=1"
    )
    parser.add_argument("--prefix", default="", help="in front of the nodes' names")
    parser.add_argument("--agent", default="lutbuilder-agent", help="the program on the nodes")
    parser.add_argument("options", nargs="*", help="for lutbuilder-agent run, behind --")
    asked = parser.parse_args()

    custom = {name: float(amount) for name, _, amount in (each.partition("=") for each in asked.resource)}
    command = [asked.agent, "run", "--coordinator", asked.coordinator, *asked.options]
    ray.init(address="auto", log_to_driver=True)
    bundle = {"CPU": asked.cpus, **({"GPU": asked.gpus} if asked.gpus else {}), **custom}
    group = placement_group([bundle] * asked.nodes, strategy="STRICT_SPREAD")
    if not group.wait(timeout_seconds=120):
        print(f"no {asked.nodes} nodes have {bundle} free: see `ray status`", file=sys.stderr)
        remove_placement_group(group)
        return 75
    nodes = [
        Node.options(
            num_cpus=asked.cpus,
            num_gpus=asked.gpus,
            resources=custom,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number),
        ).remote(command, asked.prefix)
        for number in range(asked.nodes)
    ]
    try:
        while True:
            states = ray.get([node.state.remote() for node in nodes])
            if all(status is not None for _, status in states):
                print(*(f"{name} ended with {status}" for name, status in states), sep="\n")
                return max(status or 0 for _, status in states)
            time.sleep(1)
    except KeyboardInterrupt:
        print(*ray.get([node.stop.remote() for node in nodes]), flush=True)
        return 130
    finally:
        remove_placement_group(group)


if __name__ == "__main__":
    sys.exit(main())
