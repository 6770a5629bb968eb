"""A coordinator that others can reach: TLS unless somebody says otherwise. Real processes in network namespaces."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.desk import NAME
from tests.e2e.test_join_process import LabDesk
from tests.netns import Wire, bad_network, missing

COLLECT = "--device simulated --max-rounds 8 --precision 20% --carriers 0 --budget 1h --json"


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    reason = missing()
    if reason is not None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with bad_network() as wire:
        yield wire


@pytest.fixture
def lab(wire: Wire, tmp_path: Path) -> Iterator[LabDesk]:
    """The coordinator's machine."""
    made = LabDesk(tmp_path / "lab")
    made.within = wire.near.within
    made.install()
    yield made
    made.clear()


@pytest.fixture
def device(wire: Wire, tmp_path: Path) -> Iterator[LabDesk]:
    """Another machine, where an agent runs and somebody asks."""
    made = LabDesk(tmp_path / "device")
    made.within = wire.far.within
    made.install()
    yield made
    made.clear()


def test_from_nothing_to_a_table_over_tls_by_pasted_lines(lab: LabDesk, device: LabDesk, wire: Wire) -> None:
    """No option names TLS: an address that others reach is enough."""
    at = wire.near.address
    served = lab.serve_at("--listen", "0.0.0.0:7070", "--advertise", at)
    assert (served["dial"], served["join"]) == (f"{at}:7070", f"{at}:7072")

    stranger = device.paste(f"lutbuilder agents --coordinator {at}:7070 --insecure-plaintext")
    assert stranger.status == 77
    assert "speaks TLS and asks for a certificate" in stranger.err

    joined = device.paste(served["join_line"])
    assert joined.status == 0, joined.err
    agent = device.start_agent(*shlex.split(joined.out.splitlines()[-1])[1:], "--runtimes", "simulated")
    admin = lab.type_in(f"lutbuilder security token --role admin --state-dir {lab.state}").out.strip()
    assert device.paste(admin).status == 0
    wrong_port = device.paste(admin.replace(":7072", ":7070"))
    assert wrong_port.status == 77
    assert "joins have one of their own, 7072" in wrong_port.err

    collected = device.paste(f"lutbuilder collect --coordinator {at}:7070 --luts {device.luts} {COLLECT}")
    assert collected.status == 0, collected.err
    table = device.luts / NAME / "v0001.parquet"
    assert collected.json["lut"]["path"] == str(table)
    assert table.read_bytes() == (lab.luts / NAME / "v0001.parquet").read_bytes()
    agent.send_signal(signal.SIGTERM)
    assert device.ended(agent).status == 128 + signal.SIGTERM


def test_plaintext_that_others_reach_needs_an_ugly_word_at_every_end_and_warns_at_each(
    lab: LabDesk, device: LabDesk, wire: Wire
) -> None:
    at = f"{wire.near.address}:7070"
    served = lab.serve_at("--listen", at, "--insecure-plaintext-to-anyone")
    assert (served["dial"], served["join"], served["join_line"]) == (at, "", "")
    for line in (f"lutbuilder-agent run --coordinator {at} --exit-when-idle", f"lutbuilder jobs --coordinator {at}"):
        refused = device.paste(line)
        assert refused.status == 77
        assert f"no certificate for {'an agent' if '-agent' in line else 'the commands of this user'}" in refused.err
    for line in (
        f"lutbuilder-agent run --coordinator {at} --exit-when-idle --runtimes simulated --insecure-plaintext",
        f"lutbuilder jobs --coordinator {at} --json --insecure-plaintext",
    ):
        done = device.paste(line)
        assert done.status == 0, done.err
        assert f"WARNING: --insecure-plaintext: nothing that goes to {at} and back is encrypted" in done.err
    tokens = device.paste(f"lutbuilder security token --coordinator {at} --insecure-plaintext")
    assert tokens.status == 78
    assert "speaks plaintext, where nobody joins" in tokens.err
    (process,) = lab._started
    process.send_signal(signal.SIGTERM)
    ended = lab.ended(process)
    assert ended.status == 0
    assert f"WARNING: --insecure-plaintext-to-anyone: whoever reaches {at} may submit jobs" in ended.err
    assert not (lab.state / "trust").exists()
