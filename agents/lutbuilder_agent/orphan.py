"""No orphans: a child process that ends when its parent does, however the parent ended."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_WATCH_S = 1.0


def die_with_parent(parent: int, signum: int = signal.SIGKILL) -> None:
    """End this process by `signum` as soon as process `parent`, which started it, has ended; at once if it already has.

    Linux asks the kernel, which costs nothing while ops are timed; elsewhere a thread looks once a second.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0)
        if os.getppid() != parent:  # it ended before we asked
            os.kill(os.getpid(), signum)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_S)
        os.kill(os.getpid(), signum)

    threading.Thread(target=watch, daemon=True, name="watch-parent").start()
