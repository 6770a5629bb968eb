"""`lutbuilder security`: what people type, what they get, and what they are told instead."""

from __future__ import annotations

import json
import shlex
import time

import pytest

from lutbuilder.cli.main import app

COMMANDS = ("init", "token", "show", "list", "revoke", "rotate", "join")


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    """Return a function that runs a command line in an empty folder and gives (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUTBUILDER_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def run(line: str):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            app(["security", *shlex.split(line)], prog_name="lutbuilder")
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return run


@pytest.fixture
def lab(cli):
    assert cli("init")[0] == 0
    return cli


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(cli, command):
    status, out, _ = cli(f"{command} --help")
    assert status == 0
    assert "Examples:" in out
    assert f"lutbuilder security {command}" in out


def test_init_makes_a_ca_once(cli):
    first, again = json.loads(cli("init --json")[1]), json.loads(cli("init --json")[1])
    assert (first["made"], again["made"]) == (True, False)
    assert first["ca"] == again["ca"]
    assert first["ca"].startswith("sha256:")
    assert "there is a CA already" in cli("init")[2]


@pytest.mark.parametrize("line", ["token", "show", "list", "revoke x", "rotate"])
def test_looking_makes_no_ca(cli, tmp_path, line):
    status, _, err = cli(line)
    assert status == 78
    assert "lutbuilder security init" in err
    assert not (tmp_path / "state").exists()


def test_a_token_is_a_line_on_stdout_and_nothing_else(lab):
    status, out, err = lab("token --join lab.example:7072")
    assert status == 0
    (line,) = out.splitlines()
    assert line.startswith("lutbuilder-agent join lab.example:7072 --token ")
    assert "good for one within 24h00m" in err


def test_a_qr_code_goes_to_stderr(lab):
    _, out, err = lab("token --qr --uses 20 --ttl 30m --name bench-pi")
    assert len(out.splitlines()) == 1
    assert len(err.splitlines()) > 20
    assert "good for up to 20 within 30m00s" in err


def test_json_has_the_line_and_its_parts(lab):
    issued = json.loads(lab("token --role reader --json")[1])
    assert issued["line"] == (
        f"lutbuilder security join HOST:PORT --token {issued['token']} --ca {issued['ca']} --role reader"
    )


def test_the_list_shows_tokens_by_their_public_part_only(lab):
    token = json.loads(lab("token --json")[1])["token"]
    for words in ("list", "list --all", "list --json"):
        out = lab(words)[1]
        assert token[10:] not in out
        assert token[:9].replace("-", "") in out.replace("-", "")
    assert "nobody has joined yet" in lab("list")[2]


def test_a_revoked_token_leaves_the_list(lab):
    token = json.loads(lab("token --json")[1])["token"]
    status, _, err = lab(f"revoke --token {token[:9]}")
    assert (status, err) == (0, "revoked 0 certificates and 1 tokens\n")
    assert json.loads(lab("list --json")[1])["tokens"] == []
    assert len(json.loads(lab("list --all --json")[1])["tokens"]) == 1


def test_show_says_what_a_pin_is_compared_with(lab):
    shown = json.loads(lab("show --json")[1])
    assert shown["ca"] == f"sha256:{shown['cas'][0]['sha256']}"
    assert "localhost" in shown["server"]["names"]
    assert shown["server"]["expires_s"] > time.time() + 80 * 86400
    out = lab("show")[1]
    assert shown["ca"] in out
    assert "signs" in out


def test_rotate_says_until_when_the_old_one_is_trusted(lab):
    before = json.loads(lab("show --json")[1])["ca"]
    status, out, err = lab("rotate --overlap 48h")
    assert status == 0
    assert "new CA" in out
    assert "the old one is trusted until" in err
    cas = json.loads(lab("show --json")[1])["cas"]
    assert [ca["until_s"] is None for ca in cas] == [True, False]
    assert f"sha256:{cas[1]['sha256']}" == before
    status, _, err = lab("rotate")
    assert status == 78
    assert "has not ended" in err
    assert "everyone joins again" in lab("rotate --overlap 0")[2]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("token --role boss", "unknown role"),
        ("token --ttl soon", "--ttl 'soon' is not a duration"),
        ("token --uses 0", "1 to 10000"),
        ("token --name ../x", "letters, digits"),
        ("token --join lab", "HOST:PORT"),
        ("revoke", "say what to revoke"),
        ("revoke a --serial b", "one of them"),
        ("revoke nobody", "lutbuilder security list"),
        ("rotate --overlap later", "--overlap 'later' is not a duration"),
        ("join lab:7072 --token x --ca nonsense", "copy the whole line again"),
        ("join lab --token x --ca nonsense", "HOST:PORT"),
        ("join lab:7072 --token x --ca y --role agent", "lutbuilder-agent join"),
        ("join lab:7072 --token x --ca y --name ../x", "letters, digits"),
        ("list --coordinator lab.example:7070", "join first"),
        ("list --coordinator lab", "HOST:PORT"),
    ],
)
def test_what_makes_no_sense_is_answered_with_what_to_type(lab, line, word):
    status, _, err = lab(line)
    assert status not in (0, 70)
    assert word in err
    assert "Traceback" not in err
