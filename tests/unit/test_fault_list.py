"""docs/faults.md names a test for every fault, and each of them exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def test_every_test_that_the_list_of_faults_names_exists(root: Path) -> None:
    named = NAMED.findall((root / "docs" / "faults.md").read_text(encoding="utf-8"))
    assert len(named) > 40
    for file, test in named:
        if f"def {test}(" not in (root / "tests" / file).read_text(encoding="utf-8"):
            pytest.fail(f"{file} has no {test}")


def test_every_line_of_the_list_names_one(root: Path) -> None:
    lines = (root / "docs" / "faults.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.endswith("| Test |")]
    assert [row for row in rows if not NAMED.search(row)] == []
