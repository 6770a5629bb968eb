"""The one table between error codes and gRPC statuses, used by both ends.

The code itself travels in the trailing metadata `lutbuilder-code`, so the far side raises the very class; the status is
for proxies, logs and clients in other languages. A test demands that the table names every code there is.
"""

from __future__ import annotations

from collections.abc import Mapping

from lutbuilder_agent.errors import LutbuilderError, WireError, all_errors

CODE_KEY = "lutbuilder-code"
_MESSAGE_CHARS = 1500  # HTTP/2 trailers hold 8 KiB, and every non-ASCII byte travels as three

STATUS: Mapping[str, str] = {  # error code -> name of a grpc.StatusCode
    "internal": "INTERNAL",
    "bad_spec": "INVALID_ARGUMENT",
    "bad_shape": "INVALID_ARGUMENT",
    "unknown_name": "NOT_FOUND",
    "missing_extra": "FAILED_PRECONDITION",
    "runtime_unavailable": "FAILED_PRECONDITION",
    "unsupported_op": "UNIMPLEMENTED",
    "bad_message": "INVALID_ARGUMENT",
    "protocol_mismatch": "FAILED_PRECONDITION",
    "unreachable": "UNAVAILABLE",
    "port_in_use": "FAILED_PRECONDITION",
    "unknown_session": "UNAUTHENTICATED",
    "stale_lease": "ABORTED",
    "artifact_corrupt": "DATA_LOSS",
    "not_authenticated": "UNAUTHENTICATED",
    "not_allowed": "PERMISSION_DENIED",
    "trust": "FAILED_PRECONDITION",
    "no_agent": "NOT_FOUND",
    "campaign_failed": "FAILED_PRECONDITION",
    "store": "INTERNAL",
    "lut": "FAILED_PRECONDITION",
    "lut_not_found": "NOT_FOUND",
    "lut_corrupt": "DATA_LOSS",
    "lut_too_new": "FAILED_PRECONDITION",
    "lut_conflict": "FAILED_PRECONDITION",
    "lut_not_writable": "FAILED_PRECONDITION",
    "lut_noisy": "FAILED_PRECONDITION",
    "samples_missing": "NOT_FOUND",
    "op_not_in_lut": "NOT_FOUND",
    "bad_table": "INVALID_ARGUMENT",
    "infeasible": "FAILED_PRECONDITION",
    "interrupted": "CANCELLED",
}


def status_name(error: LutbuilderError) -> str:
    """Return the name of the gRPC status an error travels as."""
    return STATUS[error.code]


def error_of(code: str, message: str) -> LutbuilderError:
    """Return the error of a code that came over the wire; WireError for a code only a newer coordinator knows."""
    for kind in all_errors():
        if kind.code == code:
            return kind(message)
    return WireError(f"{message} (error code {code!r}, unknown here: pip install -U lutbuilder-agent)")


def wire_text(error: LutbuilderError) -> str:
    """Return an error's message cut to what a status may carry."""
    return str(error)[:_MESSAGE_CHARS]
