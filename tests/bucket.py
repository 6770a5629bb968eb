"""An S3-compatible server on loopback, in this process, that tests may make forgetful, stubborn or slow."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
_NUMBERS = itertools.count()
SECRET = "made-up-secret"


@dataclass
class BucketServer:
    """moto's S3, one request at a time: its own look for an object and its write are two steps.

    `before` is called with every request, and may answer in its place: "409 Conflict" and a body. `requests` are the
    method, path and condition of what came.
    """

    port: int = 0
    before: Callable[[dict[str, Any]], tuple[str, bytes] | None] | None = None
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environ(self) -> dict[str, str]:
        """What a process needs to use it; no process looks for credentials anywhere else."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "made-up",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_MAX_ATTEMPTS": "1",
        }

    def make_bucket(self) -> str:
        """Return the name of a new, empty bucket."""
        name = f"bucket-{next(_NUMBERS)}"
        self._put(name, b"")
        return name

    def replace(self, url: object, raw: bytes) -> None:
        """Put other bytes where an object is, as no publisher would."""
        self._put(str(url).removeprefix("s3://"), raw)

    def _put(self, path: str, raw: bytes) -> None:
        import urllib.request

        signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=made-up/20260101/us-east-1/s3/aws4_request"}
        signed["Content-Type"] = "application/octet-stream"
        request = urllib.request.Request(f"{self.endpoint}/{path}", data=raw, headers=signed, method="PUT")
        with urllib.request.urlopen(request, timeout=30):
            pass

    def app(self, s3: Wsgi) -> Wsgi:
        def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            asked = (environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_IF_NONE_MATCH"))
            self.requests.append(asked)
            instead = None if self.before is None else self.before(environ)
            if instead is not None:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start(instead[0], [("Content-Type", "application/xml"), ("Content-Length", str(len(instead[1])))])
                return [] if asked[0] == "HEAD" else [instead[1]]  # its answer ends with the headers
            with self._turn:
                return list(s3(environ, start))

        return answer


@contextmanager
def bucket_server() -> Iterator[BucketServer]:
    """Run a server with nothing in it until the context ends."""
    from moto.server import create_backend_app
    from werkzeug.serving import make_server

    server = BucketServer()
    log = logging.getLogger("werkzeug")
    before, log.level = log.level, logging.CRITICAL
    listening = make_server("127.0.0.1", 0, server.app(create_backend_app("s3")), threaded=True)
    server.port = listening.server_port
    thread = threading.Thread(target=listening.serve_forever, name="bucket", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()
        log.level = before
