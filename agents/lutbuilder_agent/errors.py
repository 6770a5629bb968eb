"""Every error of lutbuilder: one tree, each with a stable code and a CLI exit status.

    LutbuilderError
    +-- SpecError               a value that makes no sense (op, graph, plan, probability)
    |   +-- ShapeError          arrays that do not fit each other
    |   +-- Infeasible          no arch keeps the limits; names the cheapest there is
    |   +-- UnknownName         a device, space, runtime or op kind nobody registered
    +-- MissingExtra            an optional package is not installed; prints the line to type
    +-- RuntimeUnavailable      the engine is installed but does not run here
    +-- UnsupportedOp           the engine says it cannot run this op (data: becomes a Failure)
    +-- WireError               a malformed or unknown message
    |   +-- ProtocolMismatch    agent and coordinator speak different versions
    |   +-- Unreachable         nobody answers at that address
    |   +-- PortInUse           the coordinator cannot listen there
    |   +-- UnknownSession      the coordinator does not know this session (it restarted): register again
    |   +-- StaleLease          a lease with an older epoch: somebody else holds the work now
    |   +-- ArtifactCorrupt     bytes whose sha256 is not the promised one
    |   +-- NotAuthenticated    a token or certificate that is missing, wrong, expired or revoked
    |   +-- NotAllowed          a call that this caller's role or name does not cover
    +-- TrustError              a certificate or key file that is missing, damaged or does not fit the others
    +-- NoAgent                 no agent of the wanted device came in time
    +-- CampaignFailed          nothing could be measured; the message says why
    +-- StoreError              the campaign store cannot be read or written
    +-- LutError                anything about a table file
    |   +-- LutNotFound         no such table or version
    |   +-- LutCorrupt          truncated, tampered or foreign file
    |   +-- LutTooNew           written by a newer schema
    |   +-- LutConflict         two targets, fingerprints or batch sizes that must not be pooled
    |   +-- LutNotWritable      read-only folder, disk full while publishing
    |   +-- LutNoisy            measured too badly to be published unmarked; --accept-noisy marks it
    |   +-- SamplesMissing      the visits behind a table, or what they are of, are not there: it cannot be rebuilt
    |   +-- BadTable            a published table that breaks its format; nothing of it was imported
    |   +-- OpNotInLut          the table has no row for an op; never answered with 0
    +-- Interrupted             Ctrl-C; what was acknowledged is kept

A message says what broke, where, and what to type next.
"""

from __future__ import annotations

from collections.abc import Iterable


class LutbuilderError(Exception):
    """Base of all; `code` never changes once released, `exit_status` is what the CLI ends with."""

    code = "internal"
    exit_status = 70


class SpecError(LutbuilderError, ValueError):
    code = "bad_spec"
    exit_status = 65


class ShapeError(SpecError):
    code = "bad_shape"


class Infeasible(SpecError):
    code = "infeasible"


class UnknownName(SpecError):
    code = "unknown_name"
    exit_status = 64


class MissingExtra(LutbuilderError, ImportError):
    code = "missing_extra"
    exit_status = 69


class RuntimeUnavailable(LutbuilderError):
    code = "runtime_unavailable"
    exit_status = 69


class UnsupportedOp(LutbuilderError):
    code = "unsupported_op"
    exit_status = 69


class WireError(LutbuilderError):
    code = "bad_message"
    exit_status = 76


class ProtocolMismatch(WireError):
    code = "protocol_mismatch"


class Unreachable(WireError):
    code = "unreachable"
    exit_status = 68


class PortInUse(WireError):
    code = "port_in_use"
    exit_status = 71


class UnknownSession(WireError):
    code = "unknown_session"


class StaleLease(WireError):
    code = "stale_lease"


class ArtifactCorrupt(WireError):
    code = "artifact_corrupt"


class NotAuthenticated(WireError):
    code = "not_authenticated"
    exit_status = 77


class NotAllowed(WireError):
    code = "not_allowed"
    exit_status = 77


class TrustError(LutbuilderError):
    code = "trust"
    exit_status = 78


class NoAgent(LutbuilderError):
    code = "no_agent"
    exit_status = 75


class CampaignFailed(LutbuilderError):
    code = "campaign_failed"
    exit_status = 1


class StoreError(LutbuilderError):
    code = "store"
    exit_status = 74


class LutError(LutbuilderError):
    code = "lut"
    exit_status = 66


class LutNotFound(LutError):
    code = "lut_not_found"


class LutCorrupt(LutError):
    code = "lut_corrupt"
    exit_status = 65


class LutTooNew(LutError):
    code = "lut_too_new"
    exit_status = 65


class LutConflict(LutError):
    code = "lut_conflict"
    exit_status = 65


class LutNotWritable(LutError):
    code = "lut_not_writable"
    exit_status = 73


class LutNoisy(LutError):
    code = "lut_noisy"
    exit_status = 65


class SamplesMissing(LutError):
    code = "samples_missing"


class BadTable(LutError):
    code = "bad_table"
    exit_status = 65


class OpNotInLut(LutError, KeyError):
    code = "op_not_in_lut"

    def __str__(self) -> str:  # KeyError would show the message's repr
        return str(self.args[0]) if self.args else ""


class Interrupted(LutbuilderError):
    code = "interrupted"
    exit_status = 130


def all_errors() -> tuple[type[LutbuilderError], ...]:
    """Return every error class, the base included; the status table and the tests walk it."""
    found: list[type[LutbuilderError]] = []
    todo: list[type[LutbuilderError]] = [LutbuilderError]
    while todo:
        error = todo.pop(0)
        found.append(error)
        todo.extend(error.__subclasses__())
    return tuple(found)


def unknown_name(what: str, name: str, known: Iterable[str]) -> UnknownName:
    """Return the error for a name nobody registered: the nearest registered names first, then all of them."""
    import difflib

    known = list(known)
    near = difflib.get_close_matches(name.casefold(), known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return UnknownName(f"unknown {what} {name!r}; {hint}known: {', '.join(known)}")
