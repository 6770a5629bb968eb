"""A desk for every test: what it starts has ended when the test has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent_lab import Lab
from tests.desk import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path / "desk")
    yield made
    made.clear()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    """A function that makes a Lab; what runs in it has ended when the test has."""
    labs: list[Lab] = []

    def make(**settings: Any) -> Lab:
        labs.append(Lab(tmp_path, **settings))
        return labs[-1]

    yield make
    for one in labs:
        one.close()
