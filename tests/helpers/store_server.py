"""An S3 server on this machine, of moto, which can be made to fail as real ones do."""

import hashlib
import random
import re
import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Lock, Thread
from typing import Any, NoReturn

from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "bucket"
KEY, SECRET = "AKIARECOGNISABLEKEY0", "recognisable/secret+of+the+store"
SLOW_DOWN = (
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


@dataclass(frozen=True)
class Faults:
    """How often requests fail, as shares of all of their kind.

    Attributes:
        busy: answered with 503 SlowDown.
        dropped: the connection is closed without an answer: half of them before the request is
            done, half of them after.
        cut: the connection is closed in the middle of an answer that has content.
        lost: a write is answered as if it were done, and is not.
        lag: so many requests after a file is first written, it is in no listing.
        seed: of what fails.
    """

    busy: float = 0
    dropped: float = 0
    cut: float = 0
    lost: float = 0
    lag: int = 0
    seed: int = 0


class Server:
    """A WSGI application around moto's.

    Attributes:
        faults: of requests from now on.
        requests: how many there were, by method.
        puts: by key, the epoch of every write that was stored.
        epoch: is counted up by tests.
    """

    def __init__(self) -> None:
        self.app: Any = DomainDispatcherApplication(create_backend_app)
        self.lock = Lock()
        self.epoch = 0
        self.fail(Faults())

    def fail(self, faults: Faults) -> None:
        """Have requests fail from now on, and begin to count them anew."""
        self.faults, self._random = faults, random.Random(faults.seed)
        self.requests: dict[str, int] = defaultdict(int)
        self.failed: dict[str, int] = defaultdict(int)
        self.puts: dict[str, list[int]] = defaultdict(list)
        self._first: dict[str, int] = {}

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        key = path.removeprefix(f"/{BUCKET}/")
        with self.lock:
            self.requests[method] += 1
            number = sum(self.requests.values())
            fault = self._chosen(method, environ["QUERY_STRING"])
            self.failed[fault] += 1
        if fault == "dropped before":
            self._hang_up(environ)
        if fault == "busy":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("503 Slow Down", [("Content-Length", str(len(SLOW_DOWN)))])
            return [SLOW_DOWN if method != "HEAD" else b""]
        if fault == "lost":
            content = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            start("200 OK", [("ETag", f'"{hashlib.md5(content).hexdigest()}"')])
            return []
        answered: dict[str, Any] = {}

        def begin(status: str, headers: list[tuple[str, str]], *_: Any) -> None:
            answered.update(status=status, headers=headers)

        body = b"".join(self.app(environ, begin))
        if method == "PUT" and answered["status"].startswith("200"):
            with self.lock:
                self.puts[key].append(self.epoch)
                self._first.setdefault(key, number)
        if "list-type=2" in environ["QUERY_STRING"]:
            body = self._lagging(body, number)
            answered["headers"] = [h for h in answered["headers"] if h[0] != "Content-Length"]
            answered["headers"].append(("Content-Length", str(len(body))))
        if fault == "dropped after":
            self._hang_up(environ)
        start(answered["status"], answered["headers"])
        if fault == "cut" and len(body) > 1:
            return self._cut(environ, body)
        return [body]

    def _chosen(self, method: str, query: str) -> str:
        """Which fault a request has; "" is none."""
        place, faults = self._random.random(), self.faults
        kinds = {
            "busy": faults.busy,
            "dropped before": faults.dropped / 2,
            "dropped after": faults.dropped / 2,
            "cut": faults.cut if method == "GET" else 0,
            "lost": faults.lost if method == "PUT" and not query else 0,
        }
        for kind, share in kinds.items():
            if place < share:
                return kind
            place -= share
        return ""

    def _lagging(self, body: bytes, number: int) -> bytes:
        """A listing without what was first written a short while ago."""

        def kept(entry: re.Match[bytes]) -> bytes:
            key = re.search(rb"<Key>(.*?)</Key>", entry[0])
            assert key is not None
            first = self._first.get(key[1].decode(), -self.faults.lag)
            return entry[0] if number - first > self.faults.lag else b""

        return re.sub(rb"<Contents>.*?</Contents>", kept, body, flags=re.DOTALL)

    @staticmethod
    def _hang_up(environ: dict[str, Any]) -> NoReturn:
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError  # which the server takes as the client's

    def _cut(self, environ: dict[str, Any], body: bytes) -> Iterator[bytes]:
        yield body[: len(body) // 2]
        self._hang_up(environ)

    # What is in the bucket

    def empty(self) -> None:
        """Delete all objects, and have no request fail."""
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[BUCKET].keys.clear()
        self.fail(Faults())

    @staticmethod
    def contents() -> dict[str, bytes]:
        """All objects."""
        keys = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[BUCKET].keys
        return {name: key.value for name, key in keys.items()}

    @staticmethod
    def age(name: str, seconds: float) -> None:
        """Have an object be written so much earlier."""
        key = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[BUCKET].keys[name]
        key.last_modified -= timedelta(seconds=seconds)


class _Quiet(WSGIRequestHandler):
    def log(self, *_: object) -> None:
        """Nothing: thousands of requests are made."""

    def log_error(self, *_: object) -> None:
        """Nothing: connections are closed on purpose."""


@contextmanager
def serving() -> Iterator[tuple[Server, dict[str, str]]]:
    """A server with an empty bucket, and the environment in which it is found."""
    app = Server()
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    backend.create_bucket(BUCKET, "us-east-1")
    try:
        yield (
            app,
            {
                "AWS_ACCESS_KEY_ID": KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{server.server_port}",
                "AWS_DEFAULT_REGION": "us-east-1",
            },
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        backend.reset()
