"""A request as a job carries it: JSON with the files it names, and what of a job its `progress` text holds.

What comes from elsewhere is checked to the last field: types, names that are no paths, sizes. Folders, ports and the
address to listen at are the coordinator's own business: a request does not carry them.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lutbuilder.campaign.job import JobKind, JobSpec, JobState
from lutbuilder.campaign.request import CalibrateRequest, CollectRequest, Progress, ValidateRequest
from lutbuilder.control.api import JobOutcome, JobView
from lutbuilder_agent.errors import SpecError

Request = CollectRequest | ValidateRequest | CalibrateRequest
KINDS: Mapping[JobKind, type[Request]] = {
    "collect": CollectRequest,
    "validate": ValidateRequest,
    "calibrate": CalibrateRequest,
}
OURS = frozenset({"luts", "state_dir", "listen"})  # fields that are the coordinator's own business
_PART = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}"
_LUT = re.compile(rf"(?P<name>{_PART}/{_PART})(@(?P<version>[1-9]\d{{0,8}}))?")
_WORD = re.compile(_PART)
_FILE = re.compile(r"[^\0/\\]{1,200}")
_LEAST: Mapping[str, float] = {
    "batch": 1, "threads": 1, "budget_s": 1e-3, "max_rounds": 1, "rounds": 1, "instances": 1, "sessions": 1,
    "agents": 1, "max_ops": 1, "precision": 1e-9, "worst": 1e-9, "n_networks": 1,
}  # fmt: skip  # a table reads as one
_MOST: Mapping[str, float] = {
    "batch": 4096, "threads": 1024, "budget_s": 30 * 86_400.0, "wait_s": 30 * 86_400.0, "max_rounds": 1_000_000,
    "rounds": 10_000, "instances": 64, "carriers": 1024, "sessions": 100, "agents": 100, "max_ops": 1_000_000,
    "lease_rounds": 1_000_000, "seed": (1 << 63) - 1, "precision": 1.0, "worst": 1.0, "n_random": 10_000,
    "n_searched": 10_000, "n_networks": 128,
}  # fmt: skip  # a table reads as one
_KEPT_FILES = frozenset({"space", "networks"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a job is to do. `files`: the text of a file by the field of the request that names it.

    `coordinator`: the address as whoever asked dials it, for the command lines of messages.
    """

    request: Request
    files: Mapping[str, str] = field(default_factory=dict)
    coordinator: str = ""

    @property
    def kind(self) -> JobKind:
        """What the job does."""
        return next(kind for kind, of in KINDS.items() if isinstance(self.request, of))

    @property
    def title(self) -> str:
        """What it is about, in a line for people."""
        return _title(self.request)

    def to_json(self) -> str:
        """Return the text a JobSpec carries; equal orders give equal texts."""
        values = {
            each.name: _plain(getattr(self.request, each.name))
            for each in fields(self.request)
            if each.name not in OURS
        }
        body = {"request": values, "files": dict(self.files), "coordinator": self.coordinator}
        return json.dumps(body, sort_keys=True, ensure_ascii=False)


def order_of(spec: JobSpec) -> Order:
    """Return what a job's request says. Raises SpecError for what no lutbuilder of this version writes."""
    body = _object(spec.request, "a job's request")
    files = body.get("files", {})
    address = body.get("coordinator", "")
    if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
        raise SpecError("the files of a job's request are texts by the names of fields")
    if set(files) - _KEPT_FILES:
        raise SpecError(f"a job's request names a file as {sorted(set(files) - _KEPT_FILES)[0]!r}, which is none")
    if not isinstance(address, str) or len(address) > 300 or not address.isprintable():
        raise SpecError("the coordinator's address in a job's request is HOST:PORT")
    request = _request(KINDS[spec.kind], body.get("request"))
    _check(request, files)
    return Order(request=request, files=files, coordinator=address)


def lut_words(text: str) -> tuple[str, int]:
    """Return name and version (0: the newest) of DEVICE/NAME or DEVICE/NAME@VERSION. Raises SpecError for a path."""
    found = _LUT.fullmatch(text)
    if found is None or ".." in text:
        raise SpecError(f"{text[:200]!r} is not the name of a table, DEVICE/NAME or DEVICE/NAME@VERSION")
    return found["name"], int(found["version"] or 0)


def _request(kind: type[Request], values: object) -> Request:
    if not isinstance(values, dict):
        raise SpecError("a job's request is an object of fields")
    hints = get_type_hints(kind)
    known = {each.name: each for each in fields(kind) if each.name not in OURS}
    for name in values:
        if name not in known:
            raise SpecError(
                f"a request has no field {str(name)[:80]!r} here: pip install -U lutbuilder on this machine"
            )
    read = {name: _typed(name, value, hints[name]) for name, value in values.items()}
    for name, each in known.items():
        if name not in read and each.default is MISSING and each.default_factory is MISSING:
            raise SpecError(f"a request lacks its field {name!r}")
    return kind(**read)


def _check(request: Request, files: Mapping[str, str]) -> None:
    """Raise SpecError for a value out of range, or a name that could be a path here."""
    for each in fields(request):
        value = getattr(request, each.name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        least, most = _LEAST.get(each.name, 0), _MOST.get(each.name)
        if most is None or not least <= value <= most:
            raise SpecError(f"{each.name} of a request is from {least} to {most}, got {value}")
    names = {"device": getattr(request, "device", None), "runtime": getattr(request, "runtime", None)}
    if "space" not in files:
        names["space"] = request.space
    for name, word in names.items():
        if word is not None and not _WORD.fullmatch(word):
            raise SpecError(f"{name} of a request is a name, got {word[:80]!r}")
    for name in ("lut", "source"):
        if (word := getattr(request, name, None)) is not None:
            lut_words(word)
    for name in ("networks", "save_networks"):
        path = getattr(request, name, None)
        if path is not None and not _FILE.fullmatch(str(path)):
            raise SpecError(f"{name} of a request is the name of a file, not a path: {str(path)[:80]!r}")
    if getattr(request, "networks", None) is not None and "networks" not in files:
        raise SpecError("a request that names a list of networks brings the list")


def _title(request: Request) -> str:
    if isinstance(request, CollectRequest):
        runtime = "" if request.runtime is None else f", {request.runtime}"
        return f"{request.space} on {request.device}{runtime}, batch {request.batch}"
    if isinstance(request, ValidateRequest):
        return request.lut
    return request.lut or f"{request.device} from {request.source}"


# --- What a job's progress text holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the runner of a job has told of it so far."""

    progress: Progress | None = None
    outcome: JobOutcome | None = None
    error_code: str = ""

    def to_json(self) -> str:
        """Return the text that `told_of` reads."""
        body: dict[str, object] = {}
        if self.progress is not None:
            body["progress"] = asdict(self.progress)
        if self.outcome is not None:
            body["outcome"] = asdict(self.outcome)
        if self.error_code:
            body["error_code"] = self.error_code
        return json.dumps(body, sort_keys=True)


def told_of(job: JobState) -> Told:
    """Return what the runner of a job has told of it; nothing for one that nobody has run."""
    if not job.progress:
        return Told()
    body = _object(job.progress, f"the progress of job {job.job_id}")
    progress, outcome = body.get("progress"), body.get("outcome")
    return Told(
        progress=None if progress is None else _record(Progress, progress),
        outcome=None if outcome is None else _record(JobOutcome, outcome),
        error_code=str(body.get("error_code", "")),
    )


def view(job: JobState, *, outcome: bool = True) -> JobView:
    """Return a job as people see it."""
    told = told_of(job)
    return JobView(
        job_id=job.job_id,
        kind=job.spec.kind,
        title=_title_of(job),
        phase=job.state,
        created_s=job.created_s,
        priority=job.spec.priority,
        owner=job.spec.owner,
        message=job.message,
        error_code=told.error_code,
        campaign_ids=job.campaign_ids,
        lut=job.lut,
        finished_s=job.finished_s,
        runner=job.runner,
        progress=told.progress,
        outcome=told.outcome if outcome else None,
    )


def _title_of(job: JobState) -> str:
    try:
        return order_of(job.spec).title
    except SpecError:  # of a newer lutbuilder on the same store: it can be listed all the same
        return f"{job.spec.kind} of another version of lutbuilder"


def _record(kind: Any, values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(kind)
    return kind(**{name: _typed(name, value, hints[name]) for name, value in values.items() if name in hints})


# --- JSON to typed values


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{what} is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise SpecError(f"{what} is not a JSON object")
    return body


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return value.name
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _typed(name: str, value: object, hint: Any) -> Any:
    """Return a JSON value as the field's type wants it. Raises SpecError."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _typed(name, value, inner)
    if origin is Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, list):
        if arguments[-1] is Ellipsis:
            return tuple(_typed(name, item, arguments[0]) for item in value)
        if len(value) == len(arguments):
            return tuple(_typed(name, item, kind) for item, kind in zip(value, arguments, strict=True))
    if hint is float and type(value) in (int, float):
        return float(value)  # type: ignore[arg-type]  # just seen to be a number
    if hint is Path and isinstance(value, str):
        return Path(value)
    if isinstance(hint, type) and type(value) is hint:
        if isinstance(value, str) and (len(value) > 4096 or "\0" in value):
            raise SpecError(f"{name} is a text of at most 4096 characters")
        return value
    raise SpecError(f"{name} is {value!r:.80}, which it cannot be")
