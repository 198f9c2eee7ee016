"""Shared by all tests: the import path, one Ray cluster, and one S3 server."""

import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import hypothesis
import pytest

# The time of an example depends on the load of the machine, so there is no deadline. Developers
# draw new examples each time. CI, which decides about a change, draws the same ones.
hypothesis.settings.register_profile("untimed", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("untimed")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def pytest_addoption(parser):
    parser.addoption(
        "--share",
        metavar="K/N",
        help="run every N-th test only, from the K-th: all of them in N days, with the day as K",
    )


@pytest.hookimpl(trylast=True)  # what markers select is shared, not all tests
def pytest_collection_modifyitems(config, items):
    """Run quick tests without a cluster first, and only the share that is asked for."""
    items.sort(key=lambda item: "end_to_end" in item.path.parts)
    if share := config.getoption("share"):
        k, n = (int(number, base=10) for number in share.split("/"))
        kept = set(sorted({_shared(item) for item in items})[k % n :: n])
        config.hook.pytest_deselected(items=[i for i in items if _shared(i) not in kept])
        items[:] = [i for i in items if _shared(i) in kept]


def _shared(item):
    """Return what is shared out: a test, or a file that is slow because its cluster is."""
    module = item.getparent(pytest.Module)
    slow = any(mark.name == "slow" for mark in module.own_markers)
    return module.nodeid if slow else item.nodeid


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The number of threads is part of the bits, so it is fixed."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def default_signals():
    """A shell starts a background job with signals ignored, and its children inherit that."""
    if threading.current_thread() is threading.main_thread():
        for number, default in {
            signal.SIGINT: signal.default_int_handler,
            signal.SIGHUP: signal.SIG_DFL,
        }.items():
            if signal.getsignal(number) is signal.SIG_IGN:
                signal.signal(number, default)


@pytest.fixture(scope="session")
def cluster():
    from tests.end_to_end import runs

    with runs.cluster():
        yield


@pytest.fixture(scope="session")
def server():
    from tests.streams.s3_server import s3_server

    with s3_server() as running:
        yield running


@pytest.fixture
def proxy(server):
    from tests.streams.s3_server import proxy_of

    with proxy_of(server) as running:
        yield running


@pytest.fixture
def storage(tmp_path_factory, cluster):  # noqa: ARG001 - a run that is stored is also trained
    folder = tmp_path_factory.mktemp("runs")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def storage_of_module(tmp_path_factory, cluster):  # noqa: ARG001
    folder = tmp_path_factory.mktemp("runs")
    yield folder
    shutil.rmtree(folder)
