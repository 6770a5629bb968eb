"""What an agent is called, whose clocks it shares, and where it keeps things."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path


def default_name(host: str, device: str) -> str:
    """Return a name that is the same at every start: host and device.

    >>> default_name("Lab-PC.local", "amd-epyc-25-17")
    'lab-pc-amd-epyc-25-17'
    """
    host = re.sub(r"[^a-z0-9]+", "-", host.partition(".")[0].lower()).strip("-")[:48].strip("-")
    return "-".join(part for part in (host, device) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """Where an agent of one name keeps artifacts and unacknowledged rounds."""

    cache: Path
    spool: Path


def state_folders(name: str) -> Folders:
    """Return the folders of the agent `name`: under $LUTBUILDER_AGENT_STATE, else where XDG says, else under home."""
    state = os.environ.get("LUTBUILDER_AGENT_STATE")
    if state:
        return Folders(cache=Path(state) / "cache" / name, spool=Path(state) / "spool" / name)
    cache = os.environ.get("XDG_CACHE_HOME") or _home() / ".cache"
    kept = os.environ.get("XDG_STATE_HOME") or _home() / ".local" / "state"
    return Folders(
        cache=Path(cache) / "lutbuilder-agent" / "artifacts" / name,
        spool=Path(kept) / "lutbuilder-agent" / "spool" / name,
    )


def _home() -> Path:
    """Return the user's home, also where HOME is empty or the user has none (containers)."""
    if os.environ.get("HOME") != "":
        try:
            return Path.home()
        except RuntimeError:  # no HOME, and no entry in the user database
            pass
    return Path(tempfile.gettempdir()) / f"lutbuilder-{os.getuid() if hasattr(os, 'getuid') else 'user'}"


def clock_domain(root: Path = Path("/")) -> str:
    """Return the domain of all agents of this host, whatever container they run in; "" if the host does not say.

    It hashes the id of the running kernel's boot: a machine id is copied with images of containers and disks, and two
    hosts of one domain would wait for each other for ever.
    """
    try:
        boot_id = (root / "proc" / "sys" / "kernel" / "random" / "boot_id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return f"host-{hashlib.sha256(boot_id.encode()).hexdigest()[:12]}" if boot_id else ""
