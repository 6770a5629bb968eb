"""What is wrong with a connection to a coordinator, and what it shows of itself: asked of a plain TLS handshake."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

from lutbuilder_agent.errors import LutbuilderError, NotAuthenticated, Unreachable
from lutbuilder_agent.trust.identity import JOIN_LINE, Identity

if TYPE_CHECKING:
    import ssl

_PATIENCE_S = 10.0
_FIRST_WORD_S = 3.0
_NOT_YET, _EXPIRED, _WRONG_HOST, _WRONG_IP = 9, 10, 62, 64  # X509_V_ERR_* of OpenSSL's x509_vfy.h


def explain(address: str, identity: Identity | None = None, *, ca: str = "") -> LutbuilderError | None:
    """Return why a connection to a coordinator fails, for what no retry mends: NotAuthenticated; None if it may heal.

    gRPC says "unavailable" for all of it. To be called after that, with the identity used (None: plaintext). A
    coordinator's certificate that has expired or is not valid yet is Unreachable: it is renewed there, or this
    machine's clock gets set.
    """
    trusted = identity.ca if identity is not None else ca
    if not trusted:
        return _asks_for_a_certificate(address)
    try:
        refused = all(_hangs_up(address, trusted, identity) for _ in range(2))  # twice: it may just be starting again
    except NotAuthenticated as error:
        return error
    except Unreachable as error:
        of_the_clock = getattr(error.__cause__, "verify_code", 0) in (_NOT_YET, _EXPIRED)
        return error if of_the_clock else None
    if refused and identity is None:
        return NotAuthenticated(
            f"{address} is that coordinator, but at this port it speaks to those who have joined; joins have one of "
            f"their own, 7072 unless it was told otherwise: take HOST:PORT from the join line; {JOIN_LINE}"
        )
    if refused and identity is not None:
        return NotAuthenticated(
            f"{address} hangs up on the certificate of {identity.name}: it has expired by the clock there, or its CA "
            f"was replaced: join again; {JOIN_LINE}"
        )
    return None


def _asks_for_a_certificate(address: str) -> LutbuilderError | None:
    """Return the error for somebody who spoke plaintext to a coordinator with TLS; None if it speaks plaintext too."""
    try:
        shown_chain(address)
    except (NotAuthenticated, Unreachable):
        return None
    return NotAuthenticated(
        f"{address} speaks TLS and asks for a certificate, and this machine has none for it: join first; {JOIN_LINE}"
    )


def _hangs_up(address: str, ca: str, identity: Identity | None) -> bool:
    """Return whether the server ends the connection right after a handshake that satisfied this end."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca)
    if identity is not None:
        context.load_cert_chain(identity.path)
    with _handshake(address, context) as connection:
        connection.settimeout(_FIRST_WORD_S)
        try:
            return connection.recv(1) == b""  # a gRPC server speaks first: its settings
        except TimeoutError:
            return False
        except (ssl.SSLError, ConnectionError):
            return True


def shown_chain(address: str) -> list[bytes]:
    """Return the certificates (DER) a server shows, unverified. Raises NotAuthenticated if it speaks no TLS."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with _handshake(address, context) as connection:
        return _chain(connection)


def _chain(connection: ssl.SSLSocket) -> list[bytes]:
    """Return the chain as DER: a public method from Python 3.13 on, and the same one level below before."""
    import ssl

    if hasattr(connection, "get_unverified_chain"):
        public: list[bytes] = connection.get_unverified_chain()
        return public
    below: Any = connection._sslobj  # type: ignore[attr-defined]  # no public name before 3.13
    der: int = ssl._ssl.ENCODING_DER  # type: ignore[attr-defined]  # the same
    return [certificate.public_bytes(der) for certificate in below.get_unverified_chain() or ()]


def _handshake(address: str, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Return a connection after its handshake. Raises Unreachable, and NotAuthenticated for what no retry mends."""
    import ssl

    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    context.set_alpn_protocols(["h2"])
    try:
        plain = socket.create_connection((host, int(port)), timeout=_PATIENCE_S)
    except OSError as error:
        raise Unreachable(f"nobody answers at {address}: {error.strerror or error}; is the address right?") from error
    try:
        return context.wrap_socket(plain, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        plain.close()
        raise _mistrust(address, host, error) from error
    except ssl.SSLError as error:
        plain.close()
        if error.reason in ("WRONG_VERSION_NUMBER", "UNEXPECTED_MESSAGE", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"):
            raise NotAuthenticated(
                f"{address} speaks plaintext, not TLS: it is not the coordinator that this certificate or join line is "
                "for, or it was started without TLS"
            ) from error
        raise Unreachable(f"no TLS connection to {address}: {error.reason or error}") from error
    except OSError as error:
        plain.close()
        raise Unreachable(f"{address} ended the connection: {error.strerror or error}") from error


def _mistrust(address: str, host: str, error: ssl.SSLCertVerificationError) -> LutbuilderError:
    """Return our error for a server certificate that does not verify."""
    if error.verify_code == _NOT_YET:
        return Unreachable(
            f"the certificate of {address} is not valid yet by this machine's clock ({_now()}): set the clock"
        )
    if error.verify_code == _EXPIRED:
        return Unreachable(
            f"the certificate of {address} has expired by this machine's clock ({_now()}): set the clock, or start the "
            "coordinator again, which renews it"
        )
    if error.verify_code in (_WRONG_HOST, _WRONG_IP):
        return NotAuthenticated(
            f"the certificate of {address} is not for the name {host!r}: use a name it is for (lutbuilder security "
            f"show, there), or add this one there: lutbuilder serve --tls-name {host}"
        )
    return NotAuthenticated(
        f"{address} is not the coordinator this machine has joined: its certificate is of another CA "
        f"({error.verify_message}). If the CA was replaced there, join again; {JOIN_LINE}"
    )


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
