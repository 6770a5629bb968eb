"""Named devices: every file reads, a fingerprint finds its device, and mistakes are named."""

from __future__ import annotations

import pytest

from lutbuilder import devices
from lutbuilder_agent import runtimes
from lutbuilder_agent.errors import SpecError, UnknownName
from lutbuilder_agent.records import Fingerprint

GOOD = """
title = "Example board"
local = false
runtimes = ["onnxruntime", "litert"]
threads = 2
start_agent = ["lutbuilder-agent run --coordinator {coordinator}"]
evidence = "not verified on the hardware"

[match]
device = ["*example*"]
"board.model" = ["Example Board Rev ?"]
"""


@pytest.mark.parametrize("name", devices.names())
def test_every_named_device_reads_and_names_runtimes_that_exist(name):
    device = devices.get(name)
    assert device.name == name
    for runtime in device.runtimes:
        assert runtimes.entry(runtime)[0] == runtime


def test_this_machine_comes_first():
    assert devices.names()[0] == "cpu"
    assert {"simulated", "v100", "h100", "pixel1", "jetson-orin"} < set(devices.names())


@pytest.mark.parametrize("name", [name for name in devices.names() if not devices.get(name).local])
def test_a_remote_device_says_how_to_start_its_agent(name):
    lines = devices.get(name).agent_lines("127.0.0.1:7070")
    assert lines[-1] == "lutbuilder-agent run --coordinator 127.0.0.1:7070"
    assert "7070" in lines[0]
    assert not any("{" in line for line in lines)


@pytest.mark.parametrize("name", [name for name in devices.names() if name not in ("cpu", "simulated")])
def test_no_device_claims_to_be_verified_before_it_was(name):
    assert devices.get(name).evidence == "not verified on the hardware"


@pytest.mark.parametrize(
    ("slug", "facts", "found"),
    [
        ("my-example-1", (), True),
        ("MY-EXAMPLE-1", (), True),
        ("other", (("board.model", "example board rev 2"),), True),
        ("other", (("board.model", "example board"),), False),
        ("other", (), False),
    ],
)
def test_a_fingerprint_finds_its_device_by_slug_or_fact(slug, facts, found):
    device = devices.parse("example", GOOD)
    assert device.matches(Fingerprint(device=slug, facts=facts)) is found


def test_this_machine_matches_any_fingerprint_and_a_v100_only_its_own():
    some_cpu = Fingerprint(device="amd-epyc-25-17", facts=())
    assert devices.get("cpu").matches(some_cpu)
    assert not devices.get("v100").matches(some_cpu)
    assert devices.get("v100").matches(Fingerprint(device="nvidia-tesla-v100-sxm2-16gb", facts=()))


def test_the_first_runtime_is_the_default():
    device = devices.parse("example", GOOD)
    assert device.runtime == "onnxruntime"
    assert device.threads == 2


def test_options_make_the_runtime_use_the_silicon():
    assert devices.get("v100").options == (("device", "cuda"),)
    assert devices.get("cpu").options == ()


def test_an_unknown_device_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match=r"unknown device 'v10'; did you mean v100"):
        devices.get("v10")


@pytest.mark.parametrize("name", ["../cpu", "cpu.toml", "", "__init__"])
def test_a_name_is_never_a_path(name):
    with pytest.raises(UnknownName):
        devices.get(name)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ('title = "Example board"\n', "", "title is missing"),
        ("threads = 2", "threads = 0", "threads must be a positive integer, got 0"),
        ("threads = 2", "threads = true", "threads must be a int, got True"),
        ("local = false", 'local = "no"', "local must be a bool, got 'no'"),
        ('"litert"]', "3]", "runtimes must be a list of texts"),
        ("local = false", "local = false\nspeed = 3", "unknown field 'speed'"),
        (" {coordinator}", "", "no line of start_agent names {coordinator}"),
        ("threads = 2", "threads 2", "is not TOML"),
        ("threads = 2", "threads = 2\noptions = { device = 3 }", "options.device must be a str, got 3"),
        ('runtimes = ["onnxruntime", "litert"]', "runtimes = []", "needs a title, runtimes"),
    ],
)
def test_a_wrong_file_names_the_device_and_the_field(before, after, says):
    assert before in GOOD
    with pytest.raises(SpecError, match="device 'example'") as caught:
        devices.parse("example", GOOD.replace(before, after))
    assert says in str(caught.value)
