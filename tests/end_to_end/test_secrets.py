"""A run leaves no password behind: not in its folder, its checkpoints or Ray's logs."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from raytrain_plus import Stream, StreamWriter
from tests.streams.s3_server import KEY, SECRET

PASSWORD = "hunter2-of-the-tests"
ROOT = Path(__file__).parents[2]
TASK = """
import torch
from torch import nn
from raytrain_plus import Task

class Lines(Task):
    def model(self):
        return nn.Linear(1, 1)
    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.01)
    def forward(self, model, batch):
        return model(batch["x"].float()[:, None])[:, 0]
    def loss(self, outputs, batch):
        return (outputs - batch["label"]) ** 2

class Fails(Lines):
    def loss(self, outputs, batch):
        raise ValueError("the task's own error")
"""

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def ray_folder():
    """A folder for the session of our own Ray; its path is short, since it has sockets."""
    folder = tempfile.mkdtemp(prefix="secrets-")
    yield Path(folder)
    shutil.rmtree(folder)


@contextlib.contextmanager
def served(folder):
    """Serve a folder with a password; yields its URL with the password."""
    known = "Basic " + base64.b64encode(f"ann:{PASSWORD}".encode()).decode()

    class Guarded(SimpleHTTPRequestHandler):
        def send_head(self):
            if self.headers.get("Authorization") != known:
                self.send_error(401)
                return None
            return super().send_head()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Guarded, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://ann:{PASSWORD}@127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def rows():
    return pa.table({"x": [float(number) for number in range(64)], "label": [1.0] * 64})


def command(folder, ray_folder, *arguments):
    """Run a command with a Ray whose session is in a folder; returns its output and its JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "raytrain_plus", *map(str, arguments), "--json"],
        cwd=folder,
        env={**os.environ, "RAY_ADDRESS": "local", "RAY_TMPDIR": str(ray_folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done, json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}


def holders(secret, *folders):
    """Return the files of some folders that contain a secret in some form."""
    forms = [secret.encode(), base64.b64encode(f"ann:{secret}".encode()), secret.encode("utf-16")]
    return [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and any(form in path.read_bytes() for form in forms)
    ]


def options(server):
    """Return the options of the test's S3 server for a command."""
    given = server.options()
    return [f"key={KEY}", f"secret={SECRET}", f"client_kwargs={json.dumps(given['client_kwargs'])}"]


def test_no_password_in_what_whole_runs_leave_behind(tmp_path, ray_folder, server):
    """Data over http with a password, or in S3 with options; checkpoints in S3. Some runs fail."""
    (tmp_path / "lines.py").write_text(TASK)
    (tmp_path / "www").mkdir()
    parquet.write_table(rows(), tmp_path / "www" / "rows.parquet")
    with StreamWriter(tmp_path / "www" / "damaged", file_size=200) as writer:
        writer.write(rows())
    for file in sorted((tmp_path / "www" / "damaged").glob("*.arrow"))[1:]:  # a worker will notice
        file.write_bytes(bytes(file.stat().st_size))
    bucket = server.fresh_bucket()
    with StreamWriter(f"s3://{bucket}/data", storage_options=server.options()) as writer:
        writer.write(rows())
    place = ["--storage", tmp_path / "runs", "--batch-size", 16, "--evaluate-every", "2ba"]
    place += ["--checkpoint-storage", f"s3://{bucket}/kept", "--checkpoint-every", "2ba"]
    place += [part for one in options(server) for part in ("--checkpoint-option", one)]
    from_s3 = ["--data", f"s3://{bucket}/data"]
    from_s3 += [part for one in options(server) for part in ("--storage-option", one)]
    said = []

    def run(*arguments):
        done, told = command(tmp_path, ray_folder, "train", *arguments, *place)
        said.append(done.stdout + done.stderr)
        return done, told

    with served(tmp_path / "www") as url:
        from_web = ["--data", f"{url}/rows.parquet", "--evaluation-data", f"{url}/rows.parquet"]
        whole, told = run("lines.py:Lines", *from_web, "--name", "web", "--duration", "8ba")
        assert whole.returncode == 0, whole.stderr
        assert told["checkpoint"] == f"s3://{bucket}/kept/web/checkpoint_00000008"
        damaged = ["--data", f"{url}/damaged", "--name", "damaged", "--duration", "8ba"]
        noticed, _ = run("lines.py:Lines", *damaged)
        assert (noticed.returncode, "***@127.0.0.1" in noticed.stderr) == (1, True), noticed.stderr
    again = run("lines.py:Lines", *from_web, "--name", "web", "--duration", "8ba", "--resume")
    assert (again[0].returncode, "***@127.0.0.1" in again[0].stderr) == (2, True)  # no server
    failed, _ = run("lines.py:Fails", *from_s3, "--name", "failed", "--duration", "8ba")
    assert (failed.returncode, "the task's own error" in failed.stderr) == (1, True)
    for more in (["status", "web"], ["report", "web"]):
        done, _ = command(tmp_path, ray_folder, *more, "--storage", tmp_path / "runs")
        assert done.returncode == 0, done.stderr
        said.append(done.stdout + done.stderr)
    kept = tmp_path / "kept"
    server.files().get(f"{bucket}/kept", str(kept), recursive=True)
    for secret in (PASSWORD, SECRET):
        assert not [text for text in said if secret in text]
        assert not holders(secret, tmp_path / "runs", kept, ray_folder)
        assert secret not in repr(
            Stream(f"http://ann:{secret}@host", storage_options={"k": secret})
        )
    # The controls: the search finds a secret, and there are files to search.
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "log").write_text(f"asked http://ann:{PASSWORD}@host")
    assert holders(PASSWORD, tmp_path / "control")
    assert list(kept.rglob("*.safetensors"))
    assert list(ray_folder.rglob("*.log"))
