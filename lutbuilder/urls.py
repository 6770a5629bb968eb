"""Places of files: a path of this machine, or a URL of a bucket that fsspec opens. Pure; nobody is asked anything."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePath

from lutbuilder_agent.errors import SpecError

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://(?P<rest>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Url:
    """A place in a bucket, s3://bucket/prefix. It reads as a Path does: `/`, parent, name, stem, parts, str."""

    scheme: str
    rest: str  # behind "://", without a slash at its end

    def __str__(self) -> str:
        return f"{self.scheme}://{self.rest}"

    def __truediv__(self, name: str | PurePath) -> Url:
        more = (PurePath(name).as_posix() if isinstance(name, PurePath) else name).strip("/")
        return Url(self.scheme, f"{self.rest}/{more}" if more else self.rest)

    @property
    def parts(self) -> tuple[str, ...]:
        """The bucket and the names below it."""
        return tuple(self.rest.split("/"))

    @property
    def bucket(self) -> Url:
        """The outermost part: what has to be there before anything can be kept."""
        return Url(self.scheme, self.parts[0])

    @property
    def parent(self) -> Url:
        """One level up; a bucket's parent is itself."""
        return self if len(self.parts) == 1 else Url(self.scheme, self.rest.rpartition("/")[0])

    @property
    def name(self) -> str:
        """The last part."""
        return self.parts[-1]

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return PurePath(self.name).stem

    def absolute(self) -> Url:
        """Return itself: a URL always says where it is."""
        return self


Place = Path | Url


def place(where: str | Place) -> Place:
    """Return the place that a text names; file:///x is the path /x.

    Raises SpecError for a URL without a bucket, or with a password in it: messages and published tables show URLs.
    """
    if isinstance(where, (Path, Url)):
        return where
    found = _URL.fullmatch(where)
    if found is None:
        return Path(where)
    scheme, rest = found["scheme"].lower(), found["rest"].rstrip("/")
    if scheme in ("file", "local"):
        path = (found["rest"].removeprefix("localhost") if rest else "/") or "/"
        if not path.startswith("/"):
            raise SpecError(f"{where!r} names another machine; write a path of this one as file:///{rest}")
        return Path(path)
    if scheme == "memory":  # one for the process: memory:///x and memory://x are the same
        rest = rest.lstrip("/")
    if not rest:
        raise SpecError(f"{where!r} names no bucket; write it as {scheme}://BUCKET/PREFIX")
    if ":" in rest.partition("/")[0].rpartition("@")[0]:
        raise SpecError(
            f"a URL that holds a password: leave it out ({scheme}://HOST/...); passwords belong into the environment "
            "or the configuration of the library that opens it"
        )
    return Url(scheme, rest)
