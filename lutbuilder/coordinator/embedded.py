"""An agent of our own: `collect` and `validate` start one beside themselves when the device is this machine.

It is the very program that runs on a phone, in a process of its own, over the same wire.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

from lutbuilder_agent.errors import CampaignFailed, SpecError, StoreError

_TERMINATE_S = 10.0
_LOCK_S = 15.0  # how long to wait for the agent of a killed command to end, or for another short command
_MOST_STARTS = 4


class EmbeddedAgent:
    """The local agent process. It ends with this process, however that ends; one that dies by itself is started again.

    Start it from a thread that lives as long as the agent is wanted: the kernel ties it to that thread. Its folder is
    locked until both processes have ended: two agents of one folder would take each other's rounds and artifacts.
    """

    def __init__(self, *, coordinator: str, runtime: str, folder: Path, lock_s: float = _LOCK_S) -> None:
        self.name = f"local-{runtime}"
        self._command = [
            sys.executable, "-m", "lutbuilder_agent", "run",
            "--coordinator", coordinator,
            "--runtimes", runtime,
            "--name", self.name,
            "--cache-dir", str(folder / "cache"),
            "--spool-dir", str(folder / "spool"),
            "--die-with-parent", str(os.getpid()),
        ]  # fmt: skip  # an option and its value share a line
        self._folder = folder
        self._log_path = folder / "agent.log"
        self._starts = 0
        self._renewals = 0
        self._lock_s = lock_s
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; its log goes to agent.log in the folder.

        Raises StoreError if the folder cannot be used, or if another lutbuilder uses it and goes on doing so.
        """
        self._starts += 1
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._lock is None:
                self._lock = self._locked()
            with self._log_path.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=[self._lock],  # the lock is held until the last of us has closed it
                )
        except OSError as error:
            raise StoreError(
                f"cannot start an agent in {self._folder}: {error.strerror}; choose another folder: --state-dir DIR"
            ) from error

    def keep_alive(self) -> str | None:
        """Start the agent again if it has ended; return what happened, or None if all is well.

        One that was told to end by the coordinator goes on in a new session. Raises CampaignFailed if it keeps dying.
        """
        if self._process is None or self._process.poll() is None:
            return None
        status = self._process.returncode
        if status == 0:
            self._starts -= 1
            self._renewals += 1
            self.start()
            return f"the agent starts again: session {self._renewals + 1}"
        if self._starts >= _MOST_STARTS:
            raise CampaignFailed(
                f"the agent on this machine ended {self._starts} times, the last time with status {status}. Its last "
                f"words ({self._log_path}): {self._last_words()}. Type `lutbuilder doctor`"
            )
        self.start()
        return f"the agent ended with status {status}; start {self._starts} of {_MOST_STARTS}"

    def stop(self) -> None:
        """End the process: politely, then by force. Safe to call twice."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_TERMINATE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _locked(self) -> int:
        """Return the descriptor that holds the folder's lock."""
        handle = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        until_s = time.monotonic() + self._lock_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return handle
            except BlockingIOError as error:
                if time.monotonic() >= until_s:
                    os.close(handle)
                    raise StoreError(
                        f"another lutbuilder measures with {self._folder}: wait until it has ended (two at once would "
                        "disturb each other's timings), or choose another folder: --state-dir DIR"
                    ) from error
                time.sleep(0.05)

    def _last_words(self) -> str:
        raw = self._log_path.read_bytes()[-2000:].decode(errors="replace").strip().splitlines()
        return " / ".join(raw[-3:]) or "none"


def agent_folder(state: Path, runtime: str) -> Path:
    """Return where the embedded agent for a runtime keeps its cache and spool. Raises SpecError for an empty name."""
    if not runtime:
        raise SpecError("an agent folder needs a runtime's name")
    return state / "agents" / runtime
