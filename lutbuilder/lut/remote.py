"""Tables in a bucket, by fsspec: every version is one conditional PUT, so two publishers never take the same number.

What decides is the server ("create this object if there is none": If-None-Match: * on S3, ifGenerationMatch=0 on Google
Cloud Storage, If-None-Match on Azure), never a look beforehand. So a plugin of fsspec that looks and then writes is
refused, and so is a server that takes no notice of the condition: both would lose versions without a word.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from lutbuilder.lut.cache import Copies, cache_folder
from lutbuilder.lut.folder import KEPT, SAMPLES, LutPart, key, version_of
from lutbuilder.urls import Url
from lutbuilder_agent.errors import LutbuilderError, LutError, LutNotFound, LutNotWritable, MissingExtra, UnknownName

PROOF = ".lutbuilder-create-if-absent"
_PROOF_TEXT = (
    b"lutbuilder makes sure by this object that the server refuses to create an object twice. Leave it here.\n"
)
_PLUGINS = {
    "s3": "'lutbuilder[s3]'",
    "s3a": "'lutbuilder[s3]'",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
}
# What says of an object that it is still the same one, by what fsspec's plugins call it.
_TAGS = ("ETag", "etag", "generation", "md5Hash", "content_md5")
_NO_CREDENTIALS = frozenset(  # of botocore, google-auth and azure-identity
    {
        "NoCredentialsError",
        "PartialCredentialsError",
        "CredentialRetrievalError",
        "ProfileNotFound",
        "DefaultCredentialsError",
        "ClientAuthenticationError",
    }
)
_UNANSWERED = frozenset({"EndpointConnectionError", "ConnectTimeoutError", "ClientConnectorError", "ConnectionError"})
_TAKEN = frozenset({"PreconditionFailed", "412"})
# Where two publishers are at one object at the same moment, S3 may tell both to try again.
_TRY_AGAIN = frozenset({"ConditionalRequestConflict", "OperationAborted", "409"})
_NEEDED = (
    ". A folder of tables is one where objects may be listed, read and created (s3:ListBucket, s3:GetObject, "
    "s3:PutObject): put that right, or choose another folder: --luts DIR|URL"
)
_TRIES = 8
_PAUSE_S = 0.1


@dataclass(frozen=True)
class _Opened:
    """A bucket's server as fsspec opens it, and the places where it proved that it creates once only."""

    fs: Any
    proved: set[Url] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class RemoteFolder:
    """A LutFolder in a bucket. Files that are read are kept in the user's cache folder."""

    root: Url
    sleep: Callable[[float], None] = time.sleep

    def check(self) -> None:
        """See LutFolder.check: four requests at most. What a first publisher would leave, PROOF, is there then."""
        fs = self._proved(kept="").fs
        with _explained(f"cannot list {self.root}", self.root, LutError, cure=_NEEDED):
            fs.ls(_path(fs, self.root), detail=False)
        proof = self.root / PROOF
        with _explained(f"cannot read {proof}", proof, LutError, cure=_NEEDED):
            fs.info(_path(fs, proof))  # on S3 a HEAD, for which one needs the right to read

    def tables(self) -> dict[str, tuple[int, ...]]:
        """See LutFolder.tables; one listing for all of them."""
        found: dict[str, set[int]] = {}
        for parts in self._listed(self.root):
            version = version_of(self.root / parts[-1])
            if version is not None and len(parts) in (2, 3) and parts[-2] != SAMPLES:
                found.setdefault("/".join(parts[:-1]), set()).add(version)
        return {name: tuple(sorted(found[name])) for name in sorted(found)}

    def versions(self, name: str) -> tuple[int, ...]:
        """See LutFolder.versions."""
        home = self.root / name
        numbers = {version_of(self.root / parts[-1]) for parts in self._listed(home) if len(parts) == 1}
        return tuple(sorted(number for number in numbers if number is not None))

    def newest(self, name: str, *, least: int = 0) -> int | None:
        """See LutFolder.newest. A listing may be of a moment ago: behind `least` the objects themselves are asked."""
        listed = self.versions(name)
        newest = max((least, *listed))
        if newest > (listed[-1] if listed else 0):
            while self.has(name, newest + 1):
                newest += 1
        return newest or None

    def read(self, name: str, version: int, part: LutPart = "table") -> bytes:
        """See LutFolder.read."""
        return read_url(self.root / key(name, version, part))

    def has(self, name: str, version: int, part: LutPart = "table") -> bool:
        """See LutFolder.has."""
        return _tag(self.root / key(name, version, part)) is not None

    def create(self, name: str, version: int, raw: bytes, part: LutPart = "table") -> bool:
        """See LutFolder.create."""
        url = self.root / key(name, version, part)
        self._proved(kept=f". {KEPT}")
        # A PUT whose answer was lost is sent again by the client, and refused: the object there is ours then.
        return self._put(url, raw, cure=f". {KEPT}") or read_url(url) == raw

    def _proved(self, *, kept: str) -> _Opened:
        """Return the bucket. Raises LutNotWritable unless it creates an object only where there is none."""
        opened = _opened(self.root.bucket)
        if self.root not in opened.proved:
            self._prove(opened, kept)
            opened.proved.add(self.root)
        return opened

    def _prove(self, opened: _Opened, kept: str) -> None:
        otherwise = (
            "concurrent publishers would overwrite each other's versions. Upgrade it, or choose another folder: --luts "
            f"DIR{kept}"
        )
        if not _creates_by_itself(opened.fs):
            raise LutNotWritable(
                f"cannot publish into {self.root}: what opens {self.root.scheme}:// here ({type(opened.fs).__name__}) "
                f"cannot create an object only where there is none; {otherwise}"
            )
        proof, cure = self.root / PROOF, kept or _NEEDED
        if self._put(proof, _PROOF_TEXT, cure=cure) and self._put(proof, _PROOF_TEXT, cure=cure):
            raise LutNotWritable(
                f"cannot publish into {self.root}: its server takes no notice of the condition that an object must not "
                f"be there yet (If-None-Match: *); {otherwise}"
            )

    def _put(self, url: Url, raw: bytes, *, cure: str) -> bool:
        """Create an object; return False where the server refused because there is one."""
        fs = _opened(url.bucket).fs
        for left in reversed(range(_TRIES)):
            try:
                with _explained(f"cannot publish into {url.parent}", url, LutNotWritable, cure=cure):
                    fs.pipe_file(_path(fs, url), raw, mode="create")
            except (LutNotWritable, FileExistsError) as error:
                if isinstance(error, FileExistsError) or _code(error) in _TAKEN:
                    return False
                if not left or _code(error) not in _TRY_AGAIN:
                    raise
                self.sleep(_PAUSE_S)
            else:
                return True
        raise LutNotWritable(f"cannot publish into {url.parent}")  # never: the last try raises

    def _listed(self, home: Url) -> list[tuple[str, ...]]:
        """Return the objects below a place, each as the parts of its name."""
        fs = _opened(home.bucket).fs
        path = _path(fs, home)
        with _explained(f"cannot list {home}", home, LutError):
            try:
                found = fs.find(path)
            except FileNotFoundError as error:
                if _code(error) == "NoSuchBucket":
                    raise
                found = []
        prefix = path.rstrip("/") + "/"
        return [tuple(each.removeprefix(prefix).split("/")) for each in found if each.startswith(prefix)]


def read_url(url: Url) -> bytes:
    """Return an object, from the user's cache folder where that has it. Raises LutNotFound, LutError."""
    tag = _tag(url)
    if tag is None:
        raise LutNotFound(f"no object {url}; see what there is: lutbuilder luts list --luts {url.parent.parent.parent}")
    copies = Copies(cache_folder())
    raw = copies.get(str(url), tag) if tag else None
    if raw is None:
        fs = _opened(url.bucket).fs
        with _explained(f"cannot read {url}", url, LutError):
            raw = bytes(fs.cat_file(_path(fs, url)))
        if tag:
            copies.keep(str(url), tag, raw)
    return raw


def _tag(url: Url) -> str | None:
    """Return what tells an object from another one of its name; "" if nothing does, None if there is no object."""
    fs = _opened(url.bucket).fs
    with _explained(f"cannot read {url}", url, LutError):
        try:
            found = fs.info(_path(fs, url))
        except FileNotFoundError as error:
            if _code(error) == "NoSuchBucket":
                raise
            return None
    if found.get("type") != "file":
        return None
    told = next((str(found[name]) for name in _TAGS if found.get(name)), "")
    return told and f"{told} {found.get('size')}"


@lru_cache(maxsize=16)
def _opened(bucket: Url) -> _Opened:
    """Return a bucket as fsspec opens it, its listings never remembered. Raises MissingExtra, UnknownName."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise MissingExtra(f"{bucket} needs fsspec: pip install 'lutbuilder[remote]'") from error
    extra = _PLUGINS.get(bucket.scheme, "")
    try:
        with _explained(f"cannot open {bucket}", bucket, LutError):
            fs, _ = url_to_fs(str(bucket), use_listings_cache=False, skip_instance_cache=True)
    except LutError as error:
        if isinstance(error.__cause__, ImportError):
            line = f"pip install {extra}" if extra else _first_line(error.__cause__)
            raise MissingExtra(f"{bucket.scheme}:// needs a further package: {line}") from error
        if isinstance(error.__cause__, ValueError) and "rotocol" in str(error.__cause__):
            raise UnknownName(
                f"no package opens {bucket.scheme}://; write file:///DIR, s3://BUCKET/PREFIX, gs://... or az://..."
            ) from error
        raise
    return _Opened(fs)


def forget() -> None:
    """Open every bucket anew from now on: for a process whose endpoint or credentials change."""
    _opened.cache_clear()


def _path(fs: Any, url: Url) -> str:
    return str(fs._strip_protocol(str(url)))


def _creates_by_itself(fs: Any) -> bool:
    """Whether a plugin says to the server that an object must not be there, which fsspec's own method does not."""
    from fsspec.asyn import AsyncFileSystem
    from fsspec.spec import AbstractFileSystem

    base, name = (
        (AsyncFileSystem, "_pipe_file") if isinstance(fs, AsyncFileSystem) else (AbstractFileSystem, "pipe_file")
    )
    method = getattr(type(fs), name)
    return method is not getattr(base, name) and "mode" in inspect.signature(method).parameters


@contextmanager
def _explained(doing: str, url: Url, kind: type[LutError], *, cure: str = "") -> Iterator[None]:
    """Turn what fsspec and the libraries below it raise into one line; they have no base class but Exception."""
    try:
        yield
    except (FileExistsError, LutbuilderError):
        raise
    except Exception as error:
        names = {type(each).__name__ for each in (error, error.__cause__)}
        if names & _NO_CREDENTIALS:
            told = f"no credentials for {url.bucket}: {_credentials(url.scheme)}"
        elif names & _UNANSWERED:
            told = f"{_first_line(error)}: check the network, and the endpoint ({_endpoint(url.scheme)})"
        elif isinstance(error, FileNotFoundError):
            told = f"there is no bucket {url.bucket}: make it, or check the endpoint ({_endpoint(url.scheme)})"
            kind = LutNotFound if kind is LutError else kind
        elif isinstance(error, PermissionError):
            told = f"{_first_line(error)}: the credentials do not allow it"
        else:
            told = f"{type(error).__name__}: {_first_line(error)}"
        raise kind(f"{doing}: {told}{cure}") from error


def _credentials(scheme: str) -> str:
    if scheme in ("s3", "s3a"):
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    return "see the documentation of the package that opens it"


def _endpoint(scheme: str) -> str:
    return "AWS_ENDPOINT_URL" if scheme in ("s3", "s3a") else "in the configuration of fsspec"


def _code(error: BaseException | None) -> str:
    """Return what the server called the error, "" if nobody says."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
