"""Join tokens: random, shown once in groups of four, kept as a hash, never written to a log.

A token is 160 random bits in 32 characters of Crockford's base 32 (no I, L, O, U). The first eight are its public id,
by which it is found and listed; the other 24 are the secret, 120 bits. Work factors of password hashes slow down
guessing from small sets; 2^120 needs no slowing down, so the store keeps one SHA-256, salted by the id.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from lutbuilder_agent.errors import NotAuthenticated

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_READ_AS = str.maketrans("OIL", "011")  # what people type for digits
_BYTES = 20
_ID_CHARS = 8
_CHARS = 32
# Anything that begins like a token, in either case, whole or cut short. A uuid does not: its first group is of eight.
_LIKE_A_TOKEN = re.compile(r"(?<![0-9A-Za-z-])([0-9A-Za-z]{4}-[0-9A-Za-z]{4})-[0-9A-Za-z]{4}(?:-[0-9A-Za-z]{1,4})*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token that can be read: in memory only, while it is made or handed in."""

    token_id: str
    secret: str = field(repr=False)

    @property
    def text(self) -> str:
        """The whole token as it is shown: ABCD-EFGH-..."""
        whole = self.token_id + self.secret
        return "-".join(whole[start : start + 4] for start in range(0, _CHARS, 4))

    @property
    def digest(self) -> str:
        """What is kept of it: 64 hex digits."""
        return hashlib.sha256(f"lutbuilder join token\0{self.token_id}\0{self.secret}".encode()).hexdigest()

    def matches(self, digest: str) -> bool:
        """Return whether this is the token of a digest, in a time that does not depend on where they differ."""
        return hmac.compare_digest(self.digest, digest)


def new_token(random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> Token:
    """Return a new token."""
    number = int.from_bytes(random_bytes(_BYTES), "big")
    whole = "".join(_ALPHABET[number >> shift & 31] for shift in range(5 * (_CHARS - 1), -1, -5))
    return Token(token_id=whole[:_ID_CHARS], secret=whole[_ID_CHARS:])


def read_token(text: str) -> Token:
    """Return the token somebody typed: case, dashes and spaces do not matter. Raises NotAuthenticated."""
    whole = re.sub(r"[\s-]", "", text[:200]).upper().translate(_READ_AS)
    if len(whole) != _CHARS or not set(whole) <= set(_ALPHABET):
        raise NotAuthenticated(
            "that is no token: a token is 8 groups of 4 letters and digits; copy the whole join line again"
        )
    return Token(token_id=whole[:_ID_CHARS], secret=whole[_ID_CHARS:])


def read_token_id(text: str) -> str:
    """Return the public part of what somebody typed: an id, or a whole token."""
    return re.sub(r"[\s-]", "", text[:200]).upper().translate(_READ_AS)[:_ID_CHARS]


def shown_id(token_id: str) -> str:
    """Return an id as it begins its token: ABCD-EFGH."""
    return f"{token_id[:4]}-{token_id[4:]}"


def redacted(text: str) -> str:
    """Return the text with everything that looks like a token cut down to its public part."""
    return _LIKE_A_TOKEN.sub(lambda found: f"{found[1]}-[redacted]", text)


class RedactTokens(logging.Filter):
    """For log handlers: whatever gets into a line, a token's secret does not."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep every record, its message redacted."""
        message = record.getMessage()
        clean = redacted(message)
        if clean != message:
            record.msg, record.args = clean, ()
        return True
