"""Where campaigns are kept between two runs of a command: one folder a user, outside the checkout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

VARIABLE = "LUTBUILDER_STATE"
STORE_VARIABLE = "LUTBUILDER_STORE"
STORE_NAME = "campaigns.sqlite"


def state_folder(chosen: Path | None, *, environ: Mapping[str, str], home: Path) -> Path:
    """Return the folder: `chosen`, else $LUTBUILDER_STATE, else the user's state folder (XDG). Creates nothing."""
    if chosen is not None:
        return chosen
    if environ.get(VARIABLE):
        return Path(environ[VARIABLE])
    base = environ.get("XDG_STATE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else home / ".local" / "state") / "lutbuilder"


def default_store(chosen: Path | None = None) -> Path:
    """Return the file of the campaign store for this process and user; it need not exist."""
    return default_state_folder(chosen) / STORE_NAME


def served_store(state_dir: Path | None = None, url: str | None = None) -> str | Path:
    """Return where the store of a coordinator of many is: `url`, else $LUTBUILDER_STORE, else the file of the folder.

    A chosen folder is chosen: the variable says nothing then.
    """
    import os

    return url or (os.environ.get(STORE_VARIABLE) if state_dir is None else None) or default_store(state_dir)


def default_state_folder(chosen: Path | None = None) -> Path:
    """Return `state_folder` for this process and user; below the temporary folder for a user without a home."""
    import os
    import tempfile

    try:
        home = Path.home() if os.environ.get("HOME") != "" else None
    except RuntimeError:  # no HOME, and no entry in the user database: a container
        home = None
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return state_folder(chosen, environ=os.environ, home=home or Path(tempfile.gettempdir()) / f"lutbuilder-{user}")
