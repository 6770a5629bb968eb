"""What trust costs: connecting, calling and joining with TLS, beside the same in plaintext, on loopback.

    python benchmarks/bench_trust.py [--runs 200] [--json]

One coordinator with TLS and one without, as `lutbuilder serve` makes them, each with a store in a scratch folder. They
run in this process and share the machine with the caller: figures are of both ends together. Medians are printed, and
the 99th percentile of calls on an open channel. Connecting includes the first call, because a channel of gRPC connects
when it is first used; an agent connects again after every round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lutbuilder.control.serve import Serving
    from lutbuilder.coordinator.trust.authority import Trust
    from lutbuilder_agent.trust import Identity

ROOT = Path(__file__).resolve().parent.parent
SAYS = {
    "plain_connect_ms": "connect and first call, plaintext",
    "tls_connect_ms": "  the same with TLS, both ends with certificates",
    "plain_call_ms": "call on an open channel, plaintext",
    "tls_call_ms": "  the same with TLS and the caller's role looked up",
    "plain_call_p99_ms": "  99th percentile, plaintext",
    "tls_call_p99_ms": "  99th percentile, TLS",
    "identify_us": "of which looking the certificate up in the store",
    "join_ms": "join: key, pin, token, certificate, file",
    "join_process_ms": "the pasted line: lutbuilder-agent join, a fresh process",
    "renew_ms": "renewal, on an open channel",
    "plain_rss_mb": "resident, python with an open plaintext channel",
    "tls_rss_mb": "  the same with TLS",
    "joined_rss_mb": "  after a join with a key of its own (a process that ends)",
}
_HELLO = """
import sys
from lutbuilder_agent import trust
from lutbuilder_agent.errors import UnknownSession
from lutbuilder_agent.wire.client import CoordinatorClient
identity = None if sys.argv[2] == "plain" else trust.Identity.load(sys.argv[1])
client = CoordinatorClient(sys.argv[1], credentials=None if identity is None else identity.credentials())
try:
    client.heartbeat("0" * 32, "", 0.0)
except UnknownSession:
    pass
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) * 1024 / 1e6)
"""
_JOIN = """
import sys
from lutbuilder_agent import trust
trust.join(sys.argv[1], token=sys.argv[2], ca=sys.argv[3], name="memory")
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) * 1024 / 1e6)
"""


@contextmanager
def coordinator(folder: Path, *, tls: bool) -> Iterator[Serving]:
    """Serve on free ports of loopback."""
    from lutbuilder.control.serve import ServeOptions, serving

    options = ServeOptions(
        luts=folder / "luts", listen="127.0.0.1:0", state_dir=folder, metrics=None, join="127.0.0.1:0", tls=tls
    )
    stop = threading.Event()
    with serving(options) as running:
        runner = threading.Thread(target=running.run, args=(stop,), daemon=True)
        runner.start()
        try:
            yield running
        finally:
            stop.set()
            runner.join()


def took_ms(ask: Callable[[], object]) -> float:
    """Return how long something took."""
    start = time.perf_counter()
    ask()
    return (time.perf_counter() - start) * 1e3


def beat(address: str, identity: Identity | None) -> Callable[[], None]:
    """Return a function that connects, makes one call that reads nothing but the caller's session, and hangs up."""
    from lutbuilder_agent.errors import UnknownSession
    from lutbuilder_agent.wire.client import CoordinatorClient

    def ask() -> None:
        credentials = None if identity is None else identity.credentials()
        with CoordinatorClient(address, credentials=credentials) as client:
            try:
                client.heartbeat("0" * 32, "", 0.0)
            except UnknownSession:
                return
        raise SystemExit("the coordinator knows a session that never was")

    return ask


def calls_ms(address: str, identity: Identity | None, runs: int) -> list[float]:
    """Return the times of heartbeats of a registered agent on one open channel."""
    from lutbuilder_agent.records import AgentHello, Fingerprint, RuntimeReport
    from lutbuilder_agent.wire.client import CoordinatorClient

    hello = AgentHello(
        name="bench",
        agent_version="0",
        fingerprint=Fingerprint(device="bench", facts=(("os", "none"),)),
        runtimes=(RuntimeReport(name="simulated", version="0"),),
    )
    with CoordinatorClient(address, credentials=None if identity is None else identity.credentials()) as client:
        session_id = client.register(hello).session_id
        return [took_ms(lambda: client.heartbeat(session_id, "", 0.0)) for _ in range(runs)]


def fresh(code: str, *words: str) -> str:
    """Run code in a process of its own and return what it prints."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "agents")])
    environment = {**os.environ, "PYTHONPATH": path, "GRPC_VERBOSITY": "ERROR"}
    command = [sys.executable, *(("-c", code) if code else ()), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def joins_ms(trust: Trust, join_at: str, runs: int) -> list[float]:
    """Return the times of joins in this process, each with a token of its own."""
    from lutbuilder_agent import trust as agent_trust
    from lutbuilder_agent.wire.join_api import TokenAsk

    pin, tokens = trust.pin, [trust.issue_token(TokenAsk(), by="bench").token for _ in range(runs)]
    return [
        took_ms(lambda token=token: agent_trust.join(join_at, token=token, ca=pin, name="bench")) for token in tokens
    ]


def measure(runs: int) -> dict[str, float]:
    """Return every figure by name; the unit is in the name."""
    from lutbuilder.coordinator import trust as coordinator_trust
    from lutbuilder_agent.trust import Identity
    from lutbuilder_agent.wire.join import SecurityClient
    from lutbuilder_agent.wire.join_api import TokenAsk

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lutbuilder-bench-")))
        os.environ["XDG_CONFIG_HOME"] = str(folder / "config")
        plain = stack.enter_context(coordinator(folder / "plain", tls=False))
        tls = stack.enter_context(coordinator(folder / "tls", tls=True))
        trust = coordinator_trust.open(tls.folder, store=tls.store)

        def line(name: str) -> list[str]:
            issued = trust.issue_token(TokenAsk(), by="bench")
            return ["join", tls.join, "--token", issued.token, "--ca", issued.ca, "--name", name]

        joins = joins_ms(trust, tls.join, max(5, runs // 10))
        identity = Identity.load(tls.address)
        if identity is None:
            raise SystemExit("the join left no identity")
        connect: dict[str, list[float]] = {"plain": [], "tls": []}
        for _ in range(runs):  # in turn, so that both see the same machine
            connect["plain"].append(took_ms(beat(plain.address, None)))
            connect["tls"].append(took_ms(beat(tls.address, identity)))
        plain_calls, tls_calls = calls_ms(plain.address, None, 5 * runs), calls_ms(tls.address, identity, 5 * runs)
        certificate = identity.certificate.encode()
        identify = [took_ms(lambda: trust.identify(certificate)) * 1e3 for _ in range(5 * runs)]
        with SecurityClient(identity.address, identity.credentials()) as client:
            renewals = [took_ms(client.renew) for _ in range(max(5, runs // 10))]
        lines = [line(f"fresh-{number}") for number in range(5)]
        processes = [took_ms(lambda words=words: fresh("", "-m", "lutbuilder_agent", *words)) for words in lines]
        rss = {
            "plain_rss_mb": [float(fresh(_HELLO, plain.address, "plain")) for _ in range(5)],
            "tls_rss_mb": [float(fresh(_HELLO, renamed(identity, folder), "tls")) for _ in range(5)],
            "joined_rss_mb": [float(fresh(_JOIN, *[line("memory")[at] for at in (1, 3, 5)])) for _ in range(5)],
        }
    return {
        "plain_connect_ms": median(connect["plain"]),
        "tls_connect_ms": median(connect["tls"]),
        "plain_call_ms": median(plain_calls),
        "tls_call_ms": median(tls_calls),
        "plain_call_p99_ms": quantiles(plain_calls, n=100)[98],
        "tls_call_p99_ms": quantiles(tls_calls, n=100)[98],
        "identify_us": median(identify),
        "join_ms": median(joins),
        "join_process_ms": median(processes),
        "renew_ms": median(renewals),
        **{name: median(values) for name, values in rss.items()},
    }


def renamed(identity: Identity, folder: Path) -> str:
    """Leave one agent's identity only, so that a process that asks for "the" agent finds it; return its address."""
    for path in (folder / "config").rglob("identity.pem"):
        if path != identity.path:
            path.unlink()
    return identity.address


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="connections of each kind; five times as many calls")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    figures = measure(max(20, given.runs))
    if given.json:
        print(json.dumps({"runs": given.runs, **figures}))
        return
    for name, value in figures.items():
        unit = name.rpartition("_")[2].replace("mb", "MB")
        print(f"{SAYS[name]:<58} {value:9.2f} {unit}")


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # before grpc is loaded
    sys.path[:0] = [str(ROOT), str(ROOT / "agents")]
    main()
