"""lutbuilder: what will this architecture cost on that device?

Importing it is light: `Lut`, `ExpectedLatency` and `SearchSpace` are fetched when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lutbuilder.lut import Lut
    from lutbuilder.nas.expected_latency import ExpectedLatency
    from lutbuilder.spaces import SearchSpace

__version__ = "0.1.0"
__all__ = ["ExpectedLatency", "Lut", "SearchSpace", "__version__"]

_HOME = {
    "ExpectedLatency": "lutbuilder.nas.expected_latency",
    "Lut": "lutbuilder.lut",
    "SearchSpace": "lutbuilder.spaces",
}


def __getattr__(name: str) -> object:
    """Fetch a public name on first use. Raises MissingExtra with the line to type where torch is not installed."""
    if name not in _HOME:
        raise AttributeError(f"module 'lutbuilder' has no attribute {name!r}")
    import importlib

    try:
        found: object = getattr(importlib.import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        from lutbuilder_agent.errors import MissingExtra

        raise MissingExtra(f"lutbuilder.{name} needs torch: pip install 'lutbuilder[torch]'") from error
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
