"""Joining as people do it: processes on loopback, one pasted line, nothing prepared."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lutbuilder.cli.main import app
from tests.desk import PATIENCE_S, Desk, Ended


class LabDesk(Desk):
    """A desk whose user has a folder for certificates, and whose shell finds the two programs."""

    @property
    def env(self) -> dict[str, str]:
        return {
            **super().env,
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
        }

    def install(self) -> None:
        """Put the programs of this checkout where the shell finds them."""
        (self.folder / "bin").mkdir()
        for name, module in (("lutbuilder", "lutbuilder.cli.main"), ("lutbuilder-agent", "lutbuilder_agent.cli")):
            script = self.folder / "bin" / name
            script.write_text(f"#!{sys.executable}\nfrom {module} import main\nimport sys\nsys.exit(main())\n")
            script.chmod(0o755)

    def paste(self, line: str, *, stdin: str = "") -> Ended:
        """Type a line into a shell."""
        done = subprocess.run(
            line,
            shell=True,
            env=self.env,
            cwd=self.folder,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def type_in(self, line: str) -> Ended:
        """Run a line of `lutbuilder` in this process, which takes a tenth of the time; any other as `paste` does."""
        program, *words = shlex.split(line)
        if program != "lutbuilder":
            return self.paste(line)
        env = {"XDG_CONFIG_HOME": self.env["XDG_CONFIG_HOME"], "LUTBUILDER_STATE": str(self.state)}
        done = CliRunner().invoke(app, words, env=env)
        return Ended(done.exit_code, done.stdout, done.stderr)

    def serve(self, *words: str) -> dict:
        """Start a coordinator with TLS and return what it says of itself."""
        process = self.start(
            "serve", "--listen", "127.0.0.1:0", "--join", "127.0.0.1:0", "--metrics", "off", "--tls", "--json",
            "--state-dir", str(self.state), "--luts", str(self.luts), *words,
        )  # fmt: skip  # an option and its value share a line
        assert process.stdout is not None
        said = ""
        while not said.endswith("\n}\n"):
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            said += line
        return json.loads(said)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[LabDesk]:
    made = LabDesk(tmp_path / "desk")
    made.install()
    yield made
    made.clear()


def security(desk: LabDesk, words: str) -> Ended:
    return desk.type_in(f"lutbuilder security {words} --state-dir {desk.state}")


def test_from_nothing_to_a_measuring_agent_in_one_pasted_line(desk):
    lab = desk.serve()
    assert lab["join_line"].startswith(f"lutbuilder-agent join {lab['join']} --token ")
    joined = desk.paste(lab["join_line"])
    assert joined.status == 0, joined.err
    run_line = joined.out.splitlines()[-1]
    assert run_line.startswith(f"lutbuilder-agent run --coordinator {lab['dial']} --name ")
    ran = desk.paste(f"{run_line} --exit-when-idle --runtimes simulated")
    assert ran.status == 0, ran.err

    files = list((desk.folder / "config").rglob("*.pem"))
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o600]
    name = shlex.split(run_line)[-1]
    listed = security(desk, "list --json").json
    assert [(one["name"], one["role"]) for one in listed["certificates"]] == [(name, "agent")]

    again = desk.paste(lab["join_line"])
    assert again.status == 77
    assert "used up: get a new one" in again.err
    assert security(desk, f"revoke {name} --reason 'phone lost'").status == 0
    out = desk.paste(f"{run_line} --exit-when-idle --runtimes simulated")
    assert out.status == 77
    assert "revoked (phone lost): join again" in out.err
    assert "Traceback" not in out.err


def test_a_reader_and_an_admin_join_and_each_may_do_its_own(desk):
    desk.serve()
    reader_line = security(desk, "token --role reader").out.strip()
    admin_line = security(desk, "token --role admin").out.strip()
    assert reader_line.startswith("lutbuilder security join ")
    assert desk.paste(reader_line).status == 0
    address = _main_address(desk)
    assert desk.type_in(f"lutbuilder agents --coordinator {address} --json").status == 0
    refused = desk.type_in(f"lutbuilder security token --coordinator {address}")
    assert refused.status == 77
    assert "is a reader, and IssueToken is for admin" in refused.err
    # The same with the token on stdin, where no other user of the machine sees it.
    words = shlex.split(admin_line)
    token = words[words.index("--token") + 1]
    assert desk.paste(admin_line.replace(token, "-"), stdin=f"{token}\n").status == 0
    issued = desk.type_in(f"lutbuilder security token --coordinator {address} --json")
    assert issued.status == 0, issued.err
    assert issued.json["line"].startswith("lutbuilder-agent join 127.0.0.1:")
    assert desk.type_in(f"lutbuilder security list --coordinator {address}").status == 0


def test_without_joining_nothing_works_and_the_line_to_get_is_named(desk):
    lab = desk.serve()
    for line in (
        f"lutbuilder-agent run --coordinator {lab['address']} --give-up-after 5 --runtimes simulated",
        f"lutbuilder agents --coordinator {lab['address']}",
        f"lutbuilder security list --coordinator {lab['address']}",
    ):
        ended = desk.paste(line)
        assert ended.status == 77, (line, ended.err)
        assert "lutbuilder security token" in ended.err
        assert "Traceback" not in ended.err


def test_no_process_writes_a_token_to_its_log(desk):
    """stderr is what journals keep. Of the first start's line only a terminal, or who asks for --json, sees it."""
    lab = desk.serve()
    secret = lab["join_line"].split()[4][10:]
    joined = desk.paste(lab["join_line"])
    wrong = desk.paste(lab["join_line"].replace(secret[-4:], "0000"))
    assert secret not in joined.out + joined.err + wrong.err
    for pid in desk.processes("serve"):
        os.kill(pid, 15)
    (process,) = desk._started
    _, err = process.communicate(timeout=PATIENCE_S)
    assert "joined as agent" in err, "the audit log is there"
    assert secret not in err


def _main_address(desk: LabDesk) -> str:
    (path,) = (desk.folder / "config" / "lutbuilder" / "coordinators").iterdir()
    host, _, port = path.name.rpartition("_")
    return f"{host}:{port}"
