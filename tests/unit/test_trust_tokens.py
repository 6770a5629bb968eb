"""Join tokens: read as people type them, kept as a hash, compared in constant time, never in a log."""

from __future__ import annotations

import hmac
import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutbuilder.coordinator.trust.tokens import RedactTokens, new_token, read_token, read_token_id, redacted, shown_id
from lutbuilder_agent.errors import NotAuthenticated

TOKEN = new_token(lambda count: bytes(range(count)))
seeds = st.binary(min_size=20, max_size=20)


@given(seeds)
def test_a_token_reads_back_from_how_it_is_shown(seed):
    token = new_token(lambda count: seed)
    assert re.fullmatch(r"([0-9A-HJKMNP-TV-Z]{4}-){7}[0-9A-HJKMNP-TV-Z]{4}", token.text)
    assert read_token(token.text) == token
    assert read_token_id(token.text) == token.token_id
    assert token.text.startswith(shown_id(token.token_id))


@given(seeds, seeds)
def test_different_randomness_gives_different_tokens(one, other):
    first, second = new_token(lambda count: one), new_token(lambda count: other)
    assert (first == second) == (one == other)
    assert first.matches(second.digest) == (one == other)


def test_two_tokens_of_this_machine_differ():
    assert new_token() != new_token()


@pytest.mark.parametrize(
    "typed",
    [
        TOKEN.text.lower(),
        TOKEN.text.replace("-", ""),
        TOKEN.text.replace("-", " "),
        f"  {TOKEN.text}\n",
        TOKEN.text.replace("0", "O").replace("1", "l"),
    ],
)
def test_a_token_is_understood_as_people_type_it(typed):
    assert read_token(typed) == TOKEN


@pytest.mark.parametrize(
    "typed", ["", "ABCD", TOKEN.text[:-1], TOKEN.text + "A", TOKEN.text[:-1] + "U", "../" * 11, "\0" * 32, "é" * 32]
)
def test_what_is_no_token_is_refused_without_repeating_it(typed):
    with pytest.raises(NotAuthenticated) as refused:
        read_token(typed)
    assert not typed or typed not in str(refused.value)
    assert "copy the whole join line" in str(refused.value)


def test_the_secret_is_in_no_repr_and_not_in_what_is_kept():
    assert TOKEN.secret not in repr(TOKEN)
    assert TOKEN.secret not in TOKEN.digest
    assert re.fullmatch("[0-9a-f]{64}", TOKEN.digest)


def test_equal_secrets_under_different_ids_have_different_hashes():
    other = read_token("0000-0000" + TOKEN.text[9:])
    assert other.secret == TOKEN.secret
    assert other.digest != TOKEN.digest


def test_digests_are_compared_in_constant_time(monkeypatch):
    compared = []

    def spying(one, other):
        compared.append((one, other))
        return real(one, other)

    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", spying)
    assert TOKEN.matches(TOKEN.digest)
    assert not TOKEN.matches("0" * 64)
    assert compared == [(TOKEN.digest, TOKEN.digest), (TOKEN.digest, "0" * 64)]


# --- logs


@given(seeds, st.sampled_from(["{}", "token={}", '"{}"', "a {} b", "join HOST:1 --token {} --ca sha256:00"]))
def test_a_token_in_a_text_is_cut_to_its_public_part(seed, around):
    token = new_token(lambda count: seed)
    for text in (token.text, token.text.lower()):
        clean = redacted(around.format(text))
        assert text[10:] not in clean
        assert text[:9] in clean


def test_a_token_cut_short_by_a_line_is_redacted_too():
    assert redacted(TOKEN.text[:23]) == f"{TOKEN.text[:9]}-[redacted]"


@pytest.mark.parametrize(
    "text",
    [
        "session 5a90c6daf8374f199fd3f580c1bd7eaa",
        "550e8400-e29b-41d4-a716-446655440000",
        "2026-11-22 10:33:05",
        "amd-epyc-25-17",
        "round 3: 12 visits",
    ],
)
def test_what_is_no_token_stays_as_it_is(text):
    assert redacted(text) == text


def test_no_handler_with_the_filter_writes_a_token(caplog):
    logger = logging.getLogger("lutbuilder.test_redaction")
    handler = logging.Handler()
    lines = []
    handler.emit = lambda record: lines.append(record.getMessage())
    handler.addFilter(RedactTokens())
    logger.addHandler(handler)
    logger.propagate = False
    try:
        logger.warning("argument %s", TOKEN.text)
        logger.warning(f"formatted {TOKEN.text}")
        logger.warning("nothing in %d of these", 3)
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
    assert [TOKEN.secret[:4] in line for line in lines] == [False, False, False]
    assert lines[0] == f"argument {TOKEN.text[:9]}-[redacted]"
    assert lines[2] == "nothing in 3 of these"
