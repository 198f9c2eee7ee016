"""A real S3 server on this machine, and a proxy in front of it that breaks requests on command."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import s3fs

KEY, SECRET = "key-of-the-tests", "s3cret-of-the-tests"
_TO_TWIN = 10_000  # from a port to that of its gRPC
PATIENCE = 30.0


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    process: subprocess.Popen

    def options(self, url: str | None = None, secret: str = SECRET) -> dict[str, Any]:
        """Return fsspec's options to reach it, directly or through a proxy."""
        return {
            "key": KEY,
            "secret": secret,
            "client_kwargs": {"endpoint_url": url or self.url, "region_name": "us-east-1"},
        }

    def files(self) -> s3fs.S3FileSystem:
        """Return its files."""
        return s3fs.S3FileSystem(
            **self.options(), use_listings_cache=False, skip_instance_cache=True
        )

    def fresh_bucket(self) -> str:
        """Make a bucket with a new name."""
        name = f"b{time.monotonic_ns()}"
        self.files().mkdir(name)
        return name


@contextlib.contextmanager
def s3_server() -> Iterator[Server]:
    """Run a server in its own folder; it is killed in the end, and its folder is removed."""
    ports = _free_ports(7)
    folder = tempfile.mkdtemp(prefix="s3-")
    weed = Path(sys.executable).with_name("weed")
    flags = {
        "dir": folder,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.telemetry": "false",
        "admin.ui": "false",
        "webdav": "false",
        "s3.port": ports[0],
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "master.port": ports[1],
        "volume.port": ports[2],
        "filer.port": ports[3],
        "admin.port": ports[4],
        "metricsPort": ports[5],
    }
    process = subprocess.Popen(
        [weed, "mini", *(f"-{name}={value}" for name, value in flags.items())],
        env={**os.environ, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        start_new_session=True,
    )
    server = Server(f"http://127.0.0.1:{ports[0]}", process)
    try:
        _await_ready(server)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        subprocess.run(["rm", "-rf", folder], check=True)
        for port in (*ports, *(port + _TO_TWIN for port in ports)):  # it leaves its local sockets
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)


def _await_ready(server: Server) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            files = server.files()
            files.mkdir("ready")
            files.pipe_file("ready/x", b"x")
            assert files.cat_file("ready/x") == b"x"
        except Exception:
            assert server.process.poll() is None, "the server has ended"
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
        else:
            return


def _free_ports(count: int) -> list[int]:
    """Return free ports whose gRPC twins are free as well."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            one = held.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            if port > 55000:
                continue
            twin = held.enter_context(socket.socket())
            try:
                twin.bind(("127.0.0.1", port + _TO_TWIN))
            except OSError:
                continue
            found.append(port)
    return found


@dataclass
class Fault:
    """What goes wrong with requests for an object.

    Attributes:
        kind: status, stall, truncate, flip, reset or slow.
        times: how often; None for always.
        status: the HTTP status of a fault of kind `status`.
        pattern: a regular expression for the path.
        method: the requests' method.
    """

    kind: str
    times: int | None = 1
    status: int = 503
    pattern: str = r"\.(arrow|parquet)$"
    method: str = "GET"
    struck: int = 0

    def strikes(self, method: str, path: str) -> bool:
        if self.method != method or not re.search(self.pattern, path):
            return False
        if self.times is not None and self.struck >= self.times:
            return False
        self.struck += 1
        return True


@dataclass
class Proxy:
    """Passes requests to a server; counts them, and breaks some of them."""

    url: str
    faults: list[Fault] = field(default_factory=list)
    gets: Counter = field(default_factory=Counter)
    on_get: Callable[[str], None] = lambda _: None
    released: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def asked(self, method: str, path: str) -> Fault | None:
        """Count a request; returns the fault that it gets, if any."""
        if method == "GET":
            self.on_get(path)
        with self.lock:
            if method == "GET":
                self.gets[path] += 1
            return next((fault for fault in self.faults if fault.strikes(method, path)), None)


class _Handler(BaseHTTPRequestHandler):
    """Passes one request on and its answer back, with a fault if one is due."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.split("?")[0]
        fault = None
        if path.count("/") > 1:
            fault = self.server.proxy.asked(self.command, path)
        if fault is not None and fault.kind == "status":
            self.send_response(fault.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif fault is not None and fault.kind == "reset":
            self._hang_up()
        else:
            self._pass_on(body, fault)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = do  # noqa: N815

    def _pass_on(self, body: bytes, fault: Fault | None) -> None:
        upstream = HTTPConnection(self.server.target, timeout=PATIENCE)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            upstream.putheader(name, value)
        upstream.endheaders(body)
        self._answer(upstream.getresponse(), fault)
        upstream.close()

    def _answer(self, answer: HTTPResponse, fault: Fault | None) -> None:
        content = bytearray(b"" if self.command == "HEAD" else answer.read())
        if fault is not None and fault.kind == "flip":
            content[len(content) // 2] ^= 1
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        if fault is None or fault.kind == "flip":
            self.wfile.write(content)
            return
        half = len(content) // 2
        self.wfile.write(content[:half])
        self.wfile.flush()
        if fault.kind == "slow":
            for start in range(half, len(content), 4096):
                self.wfile.write(content[start : start + 4096])
                self.server.proxy.released.wait(0.01)
            return
        if fault.kind == "stall":
            self.server.proxy.released.wait(PATIENCE)
        self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


class _Listening(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        self.proxy = Proxy(f"http://127.0.0.1:{self.server_address[1]}")

    def handle_error(self, *_: Any) -> None:
        pass  # the other side closed the connection, on purpose


@contextlib.contextmanager
def proxy_of(server: Server) -> Iterator[Proxy]:
    """Run a proxy."""
    listening = _Listening(server.url.removeprefix("http://"))
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield listening.proxy
    finally:
        listening.proxy.released.set()
        listening.shutdown()
        listening.server_close()
        thread.join()
