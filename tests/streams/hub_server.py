"""A server on this machine that speaks what `HfFileSystem` asks the Hugging Face Hub for.

Its answers follow those of the hub. It also serves plain files, over TLS if it is wanted.
"""

import contextlib
import datetime as dt
import ipaddress
import json
import ssl
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_REPOSITORY = "/datasets/me/it"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = urllib.parse.unquote(self.path.partition("?")[0])
        api = f"/api{_REPOSITORY}"
        tree, resolved = f"{api}/tree/main", f"{_REPOSITORY}/resolve/main/"
        if path.startswith(tree):
            folder = self.server.folder / path.removeprefix(tree).strip("/")
            deep = "recursive=true" in self.path.lower()
            found = sorted(folder.rglob("*") if deep else folder.iterdir())
            self._say([self._entry(one) for one in found])
        elif path.startswith(api):
            self._say({"id": "me/it", "sha": "a" * 40, "private": False, "siblings": []})
        else:
            self._send_file(self.server.folder / path.removeprefix(resolved).lstrip("/"))

    do_HEAD = do_GET  # noqa: N815 - a name that the library calls

    def do_POST(self):
        asked = self.rfile.read(int(self.headers["content-length"])).decode()
        try:
            paths = json.loads(asked)["paths"]
        except ValueError:
            paths = urllib.parse.parse_qs(asked)["paths"]
        files = [self.server.folder / one for one in ([paths] if isinstance(paths, str) else paths)]
        self._say([self._entry(one) for one in files if one.exists()])

    def _entry(self, path):
        kind = "directory" if path.is_dir() else "file"
        name = str(path.relative_to(self.server.folder))
        return {"type": kind, "oid": "1" * 40, "size": path.stat().st_size, "path": name}

    def _send_file(self, path):
        if not path.is_file():
            self._say({"error": "Entry not found"}, 404)
            return
        content, wanted = path.read_bytes(), self.headers.get("range")
        if wanted:
            start, end = wanted.removeprefix("bytes=").split("-")
            content = content[int(start) : int(end) + 1]
        self._answer(206 if wanted else 200, content)

    def _say(self, value, status=200):
        self._answer(status, json.dumps(value).encode())

    def _answer(self, status, content):
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.send_header("etag", '"1"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextlib.contextmanager
def hub_server(folder, certificate=None):
    """Serve a folder; yields the URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.folder = folder
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def write_certificate(path):
    """Write a key and a certificate for this machine into one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path
