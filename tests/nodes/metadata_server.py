"""A metadata service on loopback that behaves like EC2's, like Compute Engine's, or badly."""

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "/latest/api/token"
ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
PREEMPTED = "/computeMetadata/v1/instance/preempted"


class MetadataServer(ThreadingHTTPServer):
    """The service and its answers.

    Attributes:
        said: its answers by path; 404 for other paths.
        google: whether it is Compute Engine's.
        token: the only token that it accepts now, as with EC2; None if it issues none.
        asked: the requested paths.
        changed: set when a request no longer waits for a change.
        stalled: while set, it answers no request.
    """

    daemon_threads = True

    def __init__(self, *, google=False):
        self.said = {}
        self.google = google
        self.token = None if google else "first"
        self.asked = []
        self.changed = threading.Event()
        self.stalled = threading.Event()
        self.over = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def do_PUT(self):
        lifetime = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
        if self.path == TOKEN and lifetime and self.server.token:
            self._answer(200, self.server.token)
        else:
            self._answer(404, "")

    def do_GET(self):
        server, path = self.server, self.path.partition("?")[0]
        server.asked.append(path)
        if server.stalled.is_set():
            server.over.wait()
            return
        if server.google:
            if self.headers.get("Metadata-Flavor") != "Google":
                self._answer(403, "")
                return
            if "wait_for_change" in self.path and "last_etag=0" not in self.path:
                server.changed.wait()
        elif self.headers.get("X-aws-ec2-metadata-token") != server.token:
            self._answer(401, "")
            return
        found = path in server.said or (server.google and path == "/")
        self._answer(200 if found else 404, server.said.get(path, "gone"))

    def _answer(self, status, body):
        self.send_response(status)
        if self.server.google:
            self.send_header("Metadata-Flavor", "Google")
            self.send_header("etag", "e1")
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # the client does not wait any more
            self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def metadata_server(*, google=False):
    server = MetadataServer(google=google)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.changed.set()
        server.shutdown()
        server.server_close()
        thread.join()
