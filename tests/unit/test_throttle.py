"""Throttle counters: read from plain files below a folder, absent where a device counts nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from lutbuilder_agent.throttle import throttle_counters

TREES = Path(__file__).parent.parent / "fixtures" / "sysroot"


def machine(folder: Path, *, cores: int, packages: int = 1) -> Path:
    """Write the counters of a machine of equal packages, all zero, and return its root."""
    for n in range(cores):
        cpu = folder / f"sys/devices/system/cpu/cpu{n}"
        (cpu / "thermal_throttle").mkdir(parents=True)
        (cpu / "topology").mkdir()
        (cpu / "topology/physical_package_id").write_text(f"{n * packages // cores}\n")
        for name in ("core", "package"):
            count(folder, n, name, 0)
    return folder


def count(folder: Path, cpu: int, name: str, value: int) -> None:
    (folder / f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle/{name}_throttle_count").write_text(f"{value}\n")


def test_equal_texts_mean_that_nothing_happened(tmp_path: Path) -> None:
    root = machine(tmp_path, cores=2)
    counters = throttle_counters(root, cpus=(0, 1))
    assert counters is not None
    calm = counters.read()
    assert counters.read() == calm
    count(root, 1, "core", 1)
    assert counters.read() != calm
    counters.close()


def test_only_the_cores_a_process_may_use_are_watched(tmp_path: Path) -> None:
    root = machine(tmp_path, cores=4)
    counters = throttle_counters(root, cpus=(2, 3))
    assert counters is not None
    calm = counters.read()
    count(root, 0, "core", 7)
    assert counters.read() == calm
    counters.close()


def test_many_cores_are_watched_through_one_counter_a_package(tmp_path: Path) -> None:
    root = machine(tmp_path, cores=64, packages=2)
    counters = throttle_counters(root, cpus=range(64))
    assert counters is not None
    assert len(counters.handles) == 2
    calm = counters.read()
    count(root, 32, "package", 1)
    assert counters.read() != calm
    counters.close()


@pytest.mark.parametrize("tree", ["xeon_vm", "raspberry_pi4", "pixel4"])
def test_a_device_that_counts_nothing_has_no_counters(tree: str) -> None:
    assert throttle_counters(TREES / tree, cpus=(0, 1)) is None


def test_the_counters_of_a_real_tree_are_found() -> None:
    counters = throttle_counters(TREES / "ryzen", cpus=(0, 1, 2, 5))
    assert counters is not None
    assert len(counters.handles) == 3, "one core of four has no file"
    assert counters.read().split()
    counters.close()


def test_a_core_that_is_switched_off_is_no_error(tmp_path: Path) -> None:
    root = machine(tmp_path, cores=2)
    counters = throttle_counters(root, cpus=(0, 1))
    assert counters is not None
    counters.close()
    assert counters.read() == b"", "a file that cannot be read any more, as of a core that is gone"


def test_by_default_the_cores_of_this_process_are_watched(tmp_path: Path) -> None:
    import os

    allowed = sorted(os.sched_getaffinity(0))
    counters = throttle_counters(machine(tmp_path, cores=allowed[-1] + 1))
    assert counters is not None
    assert len(counters.handles) == (len(allowed) if len(allowed) <= 8 else 1)
    counters.close()
