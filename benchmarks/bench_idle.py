"""What an idle agent sends and is sent: bytes a second through a proxy that counts, with mutual TLS.

    python benchmarks/bench_idle.py [--seconds 95] [--plaintext] [--json]

A real `lutbuilder-agent run` waits for work at a coordinator that has none, over a TCP proxy on loopback. Counted is
what passes in both directions, TLS records included, the headers of TCP and IP not: from ten seconds after the agent
has registered, for three long-polls of 30 s. The goal is 100 B/s. Registering and the handshake are shown apart.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GOAL = 100.0
_SETTLE_S = 10.0
_PATIENCE_S = 60.0


def measure(seconds: float, folder: Path, *, tls: bool) -> dict[str, Any]:
    """Return the bytes until the agent waits for work, and those of each second while it does."""
    from lutbuilder.coordinator import trust
    from lutbuilder.coordinator.artifacts import ArtifactShelf
    from lutbuilder.coordinator.schedule import Decision
    from lutbuilder.coordinator.service import Coordinator, serve
    from lutbuilder.coordinator.store import Store
    from tests.tcp_proxy import Proxy

    path = os.pathsep.join([str(ROOT), str(ROOT / "agents")])
    own = {"XDG_CONFIG_HOME": str(folder / "config"), "LUTBUILDER_AGENT_STATE": str(folder / "state")}
    environment = {**os.environ, "PYTHONPATH": path, **own}
    agent = [sys.executable, "-m", "lutbuilder_agent"]
    with ExitStack() as stack:
        store = stack.enter_context(Store.open(folder / "campaigns.sqlite"))
        coordinator = Coordinator(store, ArtifactShelf(), lambda campaign_id, report: Decision())
        if tls:
            trusted = trust.open(folder, ["127.0.0.1"], store=store)
            server = stack.enter_context(
                serve(coordinator, credentials=trusted.server_credentials(), interceptors=[trusted.interceptor()])
            )
        else:
            server = stack.enter_context(serve(coordinator))
        proxy = stack.enter_context(Proxy(server.address))
        if tls:
            joins = stack.enter_context(trusted.serve_join("127.0.0.1:0", main_port=1))
            line = trusted.join_line(joins.address).strip().splitlines()[-1].split()[1:]
            words = [*agent, *line, "--name", "idle", "--coordinator", proxy.address]
            subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL)
        process = subprocess.Popen(
            [*agent, "run", "--coordinator", proxy.address, "--name", "idle", "--runtimes", "simulated"],
            env=environment,
            stderr=subprocess.DEVNULL,
        )
        try:
            until_s = time.monotonic() + _PATIENCE_S
            while coordinator.waiting == 0:
                if time.monotonic() > until_s:
                    sys.exit("the agent did not come")
                time.sleep(0.05)
            time.sleep(_SETTLE_S)
            start = proxy.bytes
            time.sleep(seconds)
            idle = proxy.bytes - start
        finally:
            process.terminate()
            process.wait()
    return {
        "tls": tls,
        "start_bytes": start,
        "idle_bytes": idle,
        "idle_bytes_per_s": idle / seconds,
        "connections": proxy.connections,
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=95.0)
    parser.add_argument("--plaintext", action="store_true", help="no TLS")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lutbuilder-bench-") as folder:
        told = measure(given.seconds, Path(folder), tls=not given.plaintext)
    if given.json:
        print(json.dumps({"seconds": given.seconds, "goal_bytes_per_s": GOAL, **told}))
        return
    print(f"{'mutual TLS' if told['tls'] else 'plaintext'}, {told['connections']} connection")
    print(f"until it waits for work {told['start_bytes']:7d} bytes")
    print(f"while it waits          {told['idle_bytes_per_s']:7.1f} B/s   goal {GOAL:g}")


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "agents")]
    main()
