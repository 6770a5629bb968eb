"""How this machine and a coordinator know each other: join with a token and a pinned CA, identities on disk, TLS.

Joining, in this order: read the coordinator's CA certificate without trusting it; compare its sha256 with the pin; open
a second connection that trusts that CA alone; hand in the token; keep the certificate. Only PEM text is ever taken from
the wire. The key is made here where the package `cryptography` is installed, and then never leaves this machine. Else
the coordinator makes it and sends it over the connection just verified; it could issue itself a certificate like that.

An identity is one file, `identity.pem` (mode 0600): a line of JSON that says whose it is, the key, the certificate, and
the CAs to trust. One file, so that one rename replaces all of it. Its certificate is renewed once a day, with the same
key; with it come the CAs to trust, which is how a rotated CA reaches everybody.

In the modules: identity (the files), joining, renewal (which way to a coordinator), handshake (why it does not work).
"""

from lutbuilder_agent.trust.handshake import explain
from lutbuilder_agent.trust.identity import Identity, identity_folder, new_key
from lutbuilder_agent.trust.joining import join, pinned_ca
from lutbuilder_agent.trust.renewal import RENEW_AFTER_S, RETRY_AFTER_S, Keeper, approach, renewed

__all__ = [
    "RENEW_AFTER_S",
    "RETRY_AFTER_S",
    "Identity",
    "Keeper",
    "approach",
    "explain",
    "identity_folder",
    "join",
    "new_key",
    "pinned_ca",
    "renewed",
]
