"""Who may talk to a coordinator, and how it proves to be itself: CA, tokens, certificates, roles, revocation.

`open` gives a Trust; the rest is in the modules: certificates (X.509), tokens, ledger (the store's tables), roles (who
may call what), guard (the interceptor), joins (the join port), authority (Trust itself), access (where commands reach
it). docs/security.md says what is protected and what is not. This package stays light: its modules load cryptography.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc

    from lutbuilder.coordinator.store import Store
    from lutbuilder.coordinator.trust.authority import Trust
    from lutbuilder.coordinator.trust.guard import Caller

__all__ = ["caller_of", "open"]


def open(state_dir: Path, names: Sequence[str] = (), *, store: Store, needs_key: bool = True) -> Trust:
    """Return the trust of a coordinator whose state is in a folder; the first time, a CA is made.

    `names` are host names and addresses that clients use, beyond those this machine knows of itself. Without the CA's
    key one can list, revoke and rotate, but issue nothing. Raises TrustError.
    """
    from lutbuilder.coordinator.trust.authority import Trust

    trust = Trust(store, state_dir / "trust", names)
    trust.prepare(needs_key=needs_key)
    return trust


def caller_of(context: grpc.ServicerContext) -> Caller:
    """Return who makes a call that was let through; on plaintext loopback an admin without a name."""
    from lutbuilder.coordinator.trust.guard import caller_of

    return caller_of(context)
