"""Joining: a token and a pinned CA are exchanged for an identity."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import replace

from lutbuilder_agent.errors import NotAuthenticated, SpecError, Unreachable
from lutbuilder_agent.private_files import private_folder
from lutbuilder_agent.trust.handshake import explain, shown_chain
from lutbuilder_agent.trust.identity import (
    JOIN_LINE,
    Identity,
    certificates,
    identity_path,
    new_key,
    one_certificate,
    one_key,
)
from lutbuilder_agent.wire.join_api import JoinAsk, Role, certificate_name


def join(
    address: str,
    *,
    token: str,
    ca: str,
    name: str,
    role: Role = "agent",
    coordinator: str = "",
    clock: Callable[[], float] = time.time,
    new_id: Callable[[], str] = lambda: secrets.token_hex(16),
    sleep: Callable[[float], None] = time.sleep,
    tries: int = 3,
) -> Identity:
    """Exchange a token for an identity, keep it on the disk, and return it.

    `address` is the join service's HOST:PORT; `ca` is "sha256:HEX", the pin. The identity is for `coordinator`, or for
    the port that the answer names, on the same host. Raises NotAuthenticated (pin, host name or token are wrong),
    Unreachable, SpecError, TrustError.
    """
    import grpc

    from lutbuilder_agent.wire.join import JoinClient

    ask = JoinAsk(token=token, role=role, name=certificate_name(name), request_id=new_id())
    agent = name if role == "agent" else ""
    private_folder(identity_path(coordinator or address, agent).parents[3 if agent else 2])  # or the token is wasted
    pinned = pinned_ca(address, ca)
    private_key, csr = new_key(name)
    ask = replace(ask, csr=csr)
    credentials = grpc.ssl_channel_credentials(root_certificates=pinned.encode())
    for left in reversed(range(tries)):
        try:
            with JoinClient(address, credentials, explain=lambda: explain(address, ca=pinned)) as client:
                admission = client.join(ask)
            break
        except Unreachable:
            if not left:
                raise
            sleep(1.0)
    address = coordinator or f"{address.rpartition(':')[0]}:{admission.port}"
    identity = Identity(
        address=address,
        name=name,
        role=role,
        certificate=one_certificate(admission.certificate),
        key=private_key or one_key(admission.private_key),
        ca=certificates(admission.ca),
        issued_s=clock(),
        expires_s=admission.expires_s,
        path=identity_path(address, agent),
    )
    identity.save()
    return identity


def pinned_ca(address: str, pin: str) -> str:
    """Return the CA certificate (PEM) whose sha256 is the pin, from the chain the server shows; nothing is trusted yet.

    Raises NotAuthenticated if no certificate of the chain is the pinned one, Unreachable, SpecError for no pin.
    """
    wanted = re.fullmatch(r"sha256:([0-9a-fA-F]{64})", pin)
    if wanted is None:
        raise SpecError(f"--ca takes sha256: and 64 hex digits, got {pin[:80]!r}; copy the whole line again")
    chain = shown_chain(address)
    for certificate in chain:
        if hmac.compare_digest(hashlib.sha256(certificate).hexdigest(), wanted[1].lower()):
            import ssl

            return ssl.DER_cert_to_PEM_cert(certificate)
    raise NotAuthenticated(
        f"{address} is not the coordinator of this join line: none of the {len(chain)} certificates it shows has the "
        "sha256 after --ca. Either the line is old (the CA was rotated since), or somebody is in between; "
        f"nothing was sent. {JOIN_LINE}"
    )
