"""An identity in use: which way to a coordinator, and its certificate renewed once a day."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from lutbuilder_agent.errors import LutbuilderError, NotAuthenticated
from lutbuilder_agent.trust.handshake import explain
from lutbuilder_agent.trust.identity import JOIN_LINE, Identity, certificates, joined_addresses, one_certificate
from lutbuilder_agent.wire.join_api import Admission

if TYPE_CHECKING:
    import grpc

log = logging.getLogger("lutbuilder_agent")

RENEW_AFTER_S = 24 * 3600.0  # a certificate older than this is renewed: so a rotation reaches everybody within a day
RETRY_AFTER_S = 3600.0  # a renewal that failed is tried again after this


class Keeper:
    """An identity in use: gives credentials, and renews the certificate when it is a day old. Used by one thread.

    `renew` asks the coordinator (a function, so that tests need none). A renewal that fails changes nothing: the
    certificate is good for months, and what is wrong shows in the call that follows.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        renew: Callable[[Identity], Admission] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.identity = identity
        self._renew = renew or _renew
        self._clock = clock
        self._not_before_s = identity.issued_s + RENEW_AFTER_S

    def credentials(self) -> grpc.ChannelCredentials:
        """Return what a channel needs, after a renewal if one is due. Raises NotAuthenticated if it is too late."""
        now_s = self._clock()
        # A clock that was set back, or a file from the future, shall not put a renewal off for ever.
        due = now_s >= self._not_before_s or now_s < self.identity.issued_s - RENEW_AFTER_S
        if due and now_s < self.identity.expires_s:
            self._not_before_s = now_s + RETRY_AFTER_S
            try:
                fresh = renewed(self.identity, self._renew(self.identity), now_s=now_s)
                fresh.save()
            except LutbuilderError as error:
                log.warning("the certificate was not renewed (trying again in an hour): %s", error)
            else:
                self.identity = fresh
                self._not_before_s = now_s + RENEW_AFTER_S
        return self.identity.credentials(now_s=now_s)


def renewed(identity: Identity, admission: Admission, *, now_s: float) -> Identity:
    """Return the identity with a new certificate and the CAs to trust. Raises TrustError for an answer of no use."""
    return replace(
        identity,
        certificate=one_certificate(admission.certificate),
        ca=certificates(admission.ca),
        issued_s=now_s,
        expires_s=admission.expires_s,
    )


def approach(
    address: str,
    *,
    name: str = "",
    control: bool = False,
    insecure_plaintext: bool = False,
    warn: Callable[[str], None] = log.warning,
) -> Keeper | None:
    """Return how to speak to a coordinator: an identity, or None for plaintext.

    Plaintext is for loopback; anywhere else only with `insecure_plaintext`, and then `warn` is told at every start.
    Raises NotAuthenticated if there is no identity for an address off loopback, TrustError if its file is no use.
    """
    from lutbuilder_agent.wire.client import is_loopback

    if insecure_plaintext:
        if not is_loopback(address):
            warn(
                f"WARNING: --insecure-plaintext: nothing that goes to {address} and back is encrypted, and whoever is "
                "on the way can read it, change it, and send models of their own. Join instead: " + JOIN_LINE
            )
        return None
    identity = Identity.load(address, name=name, control=control)
    if identity is not None:
        return Keeper(identity)
    if is_loopback(address):
        return None
    who = "the commands of this user" if control else f"agent {name}" if name else "an agent"
    known = ", ".join(joined_addresses(control=control))
    others = f" (there is one for {known})" if known else ""
    raise NotAuthenticated(f"there is no certificate for {who} at {address}{others}: join first; {JOIN_LINE}")


def _renew(identity: Identity) -> Admission:
    from lutbuilder_agent.wire.join import SecurityClient

    with SecurityClient(
        identity.address, identity.credentials(), explain=lambda: explain(identity.address, identity)
    ) as client:
        return client.renew()
