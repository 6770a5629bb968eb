"""What docs/launch/slurm.md tells to type, typed at a real Slurm: slurmctld, a slurmd a node, sbatch, srun, scancel."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lutbuilder.cli.main import app
from lutbuilder.lut import Lut
from tests.desk import PATIENCE_S
from tests.fleet import SMALL_SPACE, STEADY, Lab
from tests.slurm import SlurmCluster, missing, running_cluster

NODES = {"node1", "node2"}


class SlurmLab(Lab):
    """A lab whose users' home all nodes share, and whose programs are where a shell finds them."""

    cluster: SlurmCluster

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def env(self) -> dict[str, str]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return {**super().env, "HOME": str(self.home), "PATH": path, **self.cluster.environ}

    def install(self) -> None:
        for name, module in (("lutbuilder", "lutbuilder.cli.start"), ("lutbuilder-agent", "lutbuilder_agent.__main__")):
            script = self.folder / "bin" / name
            script.parent.mkdir(exist_ok=True)
            script.write_text(f"#!{sys.executable}\nfrom {module} import main\nimport sys\nsys.exit(main())\n")
            script.chmod(0o755)
        (self.home / "job").mkdir(parents=True)

    def shell(self, text: str, *, stdin: str = "") -> str:
        """Type lines into a shell in a folder that the nodes share."""
        done = subprocess.run(
            ["bash", "-euc", text],
            env=self.env,
            cwd=self.home / "job",
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submitted(self, text: str) -> int:
        """Return the number of the job that a shell is told to submit."""
        return int(self.shell(text).removeprefix("Submitted batch job "))

    def cancelled(self, number: int) -> str:
        """End a job as its owner does, and return what it said once all of it has ended."""
        self.cluster.ask("scancel", str(number))
        self.wait_for(lambda: self.cluster.job(number)["JobState"] == "CANCELLED")
        self.wait_for(lambda: self.processes("lutbuilder_agent") == [])
        return self.log(number)

    def log(self, number: int) -> str:
        return (self.home / "job" / f"lutbuilder-agents-{number}.log").read_text(encoding="utf-8")

    @property
    def agents(self) -> set[str]:
        with self.store() as store:
            return {agent.name for agent in store.agents()}

    def type_in(self, line: str) -> str:
        """Run a line of `lutbuilder` in this process: another takes a second."""
        program, *words = shlex.split(line, comments=True)
        assert program == "lutbuilder"
        env = {"XDG_CONFIG_HOME": str(self.home / ".config"), "LUTBUILDER_STATE": str(self.state)}
        done = CliRunner().invoke(app, words, env=env)
        assert done.exit_code == 0, done.output
        return done.stdout


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[SlurmLab]:
    """A lab with a Slurm cluster. Where none can be, the test is skipped; in CI it fails."""
    reason = missing()
    if reason is not None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with running_cluster(len(NODES), feature="a100") as cluster:
        made = SlurmLab(tmp_path / "lab")
        made.cluster = cluster
        made.install()
        yield made
        made.clear()


def typed(page: str, **told: str) -> list[str]:
    """Return the blocks of a page that are to be typed, with what is only an example there replaced."""
    blocks = re.findall(r"^```\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    for example, instead in told.items():
        assert any(example in block for block in blocks), example
        blocks = [block.replace(example, instead) for block in blocks]
    return blocks


def test_the_page_about_slurm_typed_at_a_real_one_measures_a_table_across_two_jobs(lab: SlurmLab, root: Path) -> None:
    """The first job is cancelled while a round is timed; the second is of the same agents, who go on."""
    lab.serve("--tls", "--join", "127.0.0.1:0")
    words = shlex.split(lab.told["join_line"])
    once, submit = typed(
        (root / "docs" / "launch" / "slurm.md").read_text(encoding="utf-8"),
        **{
            "CHECKOUT": str(root),
            "lab:7070": lab.address,
            "lab:7072": lab.told["join"],
            "sha256:...": words[words.index("--ca") + 1],
            "--nodes=8": f"--nodes={len(NODES)}",
            "--runtimes torch": "--runtimes simulated",
        },
    )
    line, *rest = once.splitlines()
    words = shlex.split(lab.type_in(line))
    token = words[words.index("--token") + 1]
    lab.shell("\n".join(rest), stdin=token)
    lab.type_in(lab.type_in("lutbuilder security token --role admin"))
    (lab.folder / "space.toml").write_text(SMALL_SPACE, encoding="utf-8")
    where = ("--coordinator", lab.address, "--space", str(lab.folder / "space.toml"), "--luts", str(lab.luts))
    asked = ("--max-rounds", "24", "--precision", "0.01%", "--carriers", "0", "--budget", "1h", "--accept-noisy")
    collecting = lab.start("collect", "--device", "simulated", *where, *asked, *STEADY, "--json")

    first = lab.submitted(submit)
    lab.wait_for(lambda: lab.rounds() > 1 and lab.agents == NODES)
    job = lab.cluster.job(first)
    assert (job["JobState"], job["NodeList"], job["Features"]) == ("RUNNING", "node[1-2]", "a100")
    told = lab.cancelled(first)
    assert told.count("joined as ") == told.count("stopped by SIGTERM") == len(NODES)
    assert set(re.findall(r"(\d+) failures", told)) == {"0"}, told
    assert len(re.findall(r"round \d+: ", told)) == lab.rounds(), "the round in hand was finished, and handed in"

    second = lab.submitted(submit)
    ended = lab.ended(collecting)
    assert ended.status == 0, ended.err + lab.log(second) + lab.cluster.logs()
    assert len(Lut.load(ended.json["lut"]["path"])) > 0
    with lab.store() as store:
        campaigns = [campaign.campaign_id for campaign in store.campaigns()]
        sessions = store.sessions(campaigns)
    assert len(sessions) > 1, "both jobs measured"
    assert {each.name for each in sessions} <= NODES
    told += lab.log(second)
    assert told.count("joined as ") == len(NODES) < told.count("registered as "), "in a later job a node is known"
    assert "Traceback" not in told
    assert token not in told
