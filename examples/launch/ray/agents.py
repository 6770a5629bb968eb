"""Start a lutbuilder agent on every matching node of a Ray cluster; each dials out to the coordinator.

    ray job submit --address http://HEAD:8265 --working-dir . -- \\
        python agents.py --coordinator lab:7070 --join lab:7072 --ca sha256:... --token-file ~/lutbuilder.token \\
        --nodes 4 --cpus 8 --resource measure=1

One agent a node (placement group, STRICT_SPREAD), with the node's CPUs or custom resource reserved so that Ray runs
nothing else of yours there. A node that has not joined the coordinator yet does so first, with one token for all of
them. Ends when every agent has ended; Ctrl-C or SIGTERM lets each finish its round.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

_GRACE_S = 60  # to finish a round


@dataclass(frozen=True)
class Joining:
    """How a node becomes known to the coordinator; `address` is "" for a coordinator without TLS."""

    address: str
    ca: str
    token: str = field(repr=False)


@ray.remote(max_restarts=-1, max_task_retries=0)
class Node:
    """The agent of a node, in a process of its own. A node that comes back starts it again."""

    def __init__(self, agent: str, coordinator: str, options: list[str], prefix: str, joining: Joining) -> None:
        import platform

        self._name = f"{prefix}-{platform.node()}" if prefix else platform.node()
        where = ["--coordinator", coordinator, "--name", self._name]
        if joining.address and not _identity(coordinator, self._name).exists():
            join = [agent, "join", joining.address, "--ca", joining.ca, "--token", "-", *where]
            # On stdin: all users of a node see its command lines.
            self._process = subprocess.Popen(join, stdin=subprocess.PIPE, text=True)
            self._process.communicate(f"{joining.token}\n")
            if self._process.returncode:
                return  # the agent's own words are in the job's log
        self._process = subprocess.Popen([agent, "run", *where, *options])

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


def _identity(coordinator: str, name: str) -> Path:
    """Where an agent that has joined keeps its certificate."""
    host, _, port = coordinator.rpartition(":")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    folder = f"{host.strip('[]').lower().replace(':', '-')}_{port}"
    return config / "lutbuilder" / "coordinators" / folder / "agents" / name / "identity.pem"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--coordinator", required=True, metavar="HOST:PORT")
    parser.add_argument("--join", default="", metavar="HOST:PORT", help="its join port; none without TLS")
    parser.add_argument("--ca", default="", metavar="sha256:HEX", help="of the line of `lutbuilder security token`")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="here, with the token of that line")
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
    if asked.join and not (asked.ca and asked.token_file):
        parser.error("--join needs --ca and --token-file, all three from one line of `lutbuilder security token`")
    try:
        token = asked.token_file.expanduser().read_text(encoding="utf-8").strip() if asked.join else ""
    except OSError as error:
        parser.error(f"--token-file {asked.token_file}: {error.strerror}; it has to be where this script runs")

    custom = {name: float(amount) for name, _, amount in (each.partition("=") for each in asked.resource)}
    ray.init(address="auto", log_to_driver=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `ray job stop`; Ray's own handler ends us at once
    bundle = {"CPU": asked.cpus, **({"GPU": asked.gpus} if asked.gpus else {}), **custom}
    group = placement_group([bundle] * asked.nodes, strategy="STRICT_SPREAD")
    nodes = []
    try:
        if not group.wait(timeout_seconds=120):
            print(f"no {asked.nodes} nodes have {bundle} free: see `ray status`", file=sys.stderr)
            return 75
        nodes = [
            Node.options(
                num_cpus=asked.cpus,
                num_gpus=asked.gpus,
                resources=custom,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number),
            ).remote(
                asked.agent,
                asked.coordinator,
                asked.options,
                asked.prefix,
                Joining(asked.join, asked.ca, token),
            )
            for number in range(asked.nodes)
        ]
        while True:
            states = ray.get([node.state.remote() for node in nodes])
            if all(status is not None for _, status in states):
                print(*(f"{name} ended with {status}" for name, status in states), sep="\n")
                return max(abs(status or 0) for _, status in states)
            time.sleep(1)
    except KeyboardInterrupt:
        print("told to end; the agents ended with", *ray.get([node.stop.remote() for node in nodes]), flush=True)
        return 130
    finally:
        remove_placement_group(group)


if __name__ == "__main__":
    sys.exit(main())
