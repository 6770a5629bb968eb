"""How the commands of `lutbuilder security` reach a coordinator's trust: its folder here, or its address."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lutbuilder.coordinator import trust
from lutbuilder.coordinator.store import Store
from lutbuilder.coordinator.trust.authority import Trust
from lutbuilder_agent import trust as agent_trust
from lutbuilder_agent.errors import TrustError
from lutbuilder_agent.wire.join import SecurityClient
from lutbuilder_agent.wire.join_api import Inventory, IssuedToken, Revocation, Revoked, Rotated, TokenAsk


class Security(Protocol):
    """What an admin may ask, here or over the wire; see SecurityApi."""

    def issue_token(self, ask: TokenAsk) -> IssuedToken: ...
    def inventory(self) -> Inventory: ...
    def revoke(self, what: Revocation) -> Revoked: ...
    def rotate(self, overlap_s: float) -> Rotated: ...


@dataclass(frozen=True, slots=True)
class _Here:
    """A trust folder of this machine: whoever may read its keys may do everything."""

    trust: Trust
    by: str

    def issue_token(self, ask: TokenAsk) -> IssuedToken:
        return self.trust.issue_token(ask, by=self.by)

    def inventory(self) -> Inventory:
        return self.trust.inventory()

    def revoke(self, what: Revocation) -> Revoked:
        return self.trust.revoke(what, by=self.by)

    def rotate(self, overlap_s: float) -> Rotated:
        return self.trust.rotate(overlap_s, by=self.by)


@contextmanager
def here(state: Path, store_at: str | Path, *, may_make: bool = False, needs_key: bool = True) -> Iterator[Trust]:
    """Open the trust folder of a coordinator on this machine. Raises TrustError if there is none to open."""
    if not may_make and not (state / "trust").is_dir():
        raise TrustError(
            f"there is no CA in {state / 'trust'} yet: lutbuilder security init (or start the coordinator, which makes "
            "one), or say which folder: --state-dir DIR, or which coordinator: --coordinator HOST:PORT"
        )
    with Store.open(store_at) as store:
        yield trust.open(state, store=store, needs_key=needs_key)


@contextmanager
def security(
    state: Path,
    store_at: str | Path,
    *,
    coordinator: str | None,
    insecure_plaintext: bool,
    warn: Callable[[str], None],
    needs_key: bool = True,
) -> Iterator[Security]:
    """Reach a coordinator's trust: at HOST:PORT as an admin, or else in its folder on this machine."""
    if coordinator is None:
        with here(state, store_at, needs_key=needs_key) as opened:
            yield _Here(opened, f"{getpass.getuser()} here")
        return
    keeper = agent_trust.approach(coordinator, control=True, insecure_plaintext=insecure_plaintext, warn=warn)
    identity = None if keeper is None else keeper.identity
    credentials = None if keeper is None else keeper.credentials()
    with SecurityClient(coordinator, credentials, explain=lambda: agent_trust.explain(coordinator, identity)) as client:
        yield client
