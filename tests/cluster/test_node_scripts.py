"""The scripts that the launch files run on each machine, with fake Ray, pip and Python programs."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CLUSTER = Path(__file__).parents[2] / "cluster"
SYSTEM = "/usr/bin:/bin"
SECONDS = 30

# Makes an environment in which pip installs a raytrain-plus, or fails if there is a file `broken`.
PYTHON = """#!/bin/sh
[ "$1" = -c ] && exec {python} "$@"
mkdir -p "$3/bin"
cat >"$3/bin/pip" <<END
#!/bin/sh
echo pip "\\$@" constraint="\\$PIP_CONSTRAINT" >>{log}
[ ! -e {home}/broken ] || exit 1
touch "$3/bin/raytrain-plus"
chmod +x "$3/bin/raytrain-plus"
END
chmod +x "$3/bin/pip"
"""


def program(folder, name, text):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


class Machine:
    """A home folder, and programs that log how they were called."""

    def __init__(self, home):
        self.home = home
        self.log = home / "log"
        self.programs = home / "programs"
        self.environment = home / "environment"
        source = home / "source"
        (source / "cluster").mkdir(parents=True)
        for script in ("install.sh", "start.sh"):
            shutil.copy(CLUSTER / script, source / "cluster")
        (source / "constraints.txt").write_text("ray==2.60.0\n")
        self.source = source

    def run(self, script, *words, check=True, **variables):
        known = {"HOME": str(self.home), "PATH": f"{self.programs}:{SYSTEM}", **variables}
        return subprocess.run(
            [self.source / "cluster" / script, *words],
            env=known,
            capture_output=True,
            text=True,
            check=check,
            timeout=SECONDS,
        )

    def install(self, *packages, **settings):
        return self.run("install.sh", str(self.environment), *packages, **settings)

    def done(self):
        """Return the calls since the last time."""
        told = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.write_text("")
        return told


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    text = PYTHON.format(python=sys.executable, log=machine.log, home=tmp_path)
    program(machine.programs, "python3.11", text)
    return machine


def test_a_missing_package_is_installed_once(machine):
    assert "is installed" in machine.install("gcsfs").stdout
    (asked,) = machine.done()
    assert f"{machine.source}[s3] gcsfs" in asked
    assert asked.endswith(f"constraint={machine.source}/constraints.txt")
    assert "is up to date" in machine.install("gcsfs").stdout
    assert machine.done() == []
    # A login shell finds it, and prints this once.
    login = (machine.home / ".bashrc").read_text()
    assert login == f'export PATH="{machine.environment}/bin:$PATH"  # raytrain_plus\n'


@pytest.mark.parametrize("change", ["constraints.txt", "a package", "a module"])
def test_a_changed_package_is_installed_again(machine, change):
    machine.install()
    machine.done()
    if change == "constraints.txt":
        (machine.source / change).write_text("ray==2.61.0\n")
    elif change == "a module":
        (machine.source / "module.py").write_text("")
    machine.install(*(["boto3"] if change == "a package" else []))
    assert len(machine.done()) == 1


def test_compiled_python_files_are_not_a_change(machine):
    machine.install()
    machine.done()
    (machine.source / "__pycache__").mkdir()
    (machine.source / "__pycache__" / "module.pyc").write_text("")
    machine.install()
    assert machine.done() == []


def test_a_failed_installation_is_started_again(machine):
    (machine.home / "broken").touch()
    assert machine.install(check=False).returncode != 0
    assert not (machine.home / ".bashrc").exists()
    (machine.home / "broken").unlink()
    machine.install()
    assert len(machine.done()) == 2
    # Also an installation that had succeeded before.
    (machine.source / "module.py").write_text("")
    (machine.home / "broken").touch()
    assert machine.install(check=False).returncode != 0
    (machine.home / "broken").unlink()
    machine.install()
    assert len(machine.done()) == 2


def test_an_existing_environment_is_used_unchanged(machine):
    program(machine.environment / "bin", "raytrain-plus", "")
    assert "Nothing is installed" in machine.install().stdout
    assert machine.done() == []
    assert str(machine.environment) in (machine.home / ".bashrc").read_text()


def test_an_installation_that_login_shells_find_is_used_unchanged(machine):
    program(machine.programs, "raytrain-plus", "")
    assert "is here already" in machine.install().stdout
    assert machine.done() == []
    assert not (machine.home / ".bashrc").exists()


def test_a_machine_without_python_gets_a_clear_error(machine):
    program(machine.programs, "python3.11", "#!/bin/sh\nexit 1\n")
    for name in ("python3", "python3.12", "python3.13"):
        program(machine.programs, name, "#!/bin/sh\nexit 1\n")
    failed = machine.install(check=False)
    assert failed.returncode == 1
    assert "no Python 3.11 or later" in failed.stderr


def test_no_other_user_can_read_the_token(machine):
    token = machine.home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    machine.install()
    assert token.stat().st_mode & 0o777 == 0o600


# A fake `ray start`: a new session each time, and a raylet, which ends on request.
RAY = """#!/bin/sh
echo ray "$@" >>{log}
[ "$1" = start ] || exit 0
[ ! -e {home}/broken ] || exit 1
session={home}/ray/session_$$
mkdir -p "$session/logs"
ln -sfn "$session" {home}/ray/session_latest
mkfifo "$session/begun" "$session/end"
sh -c 'echo begun >"$1/begun"; read told <"$1/end"' raylet "$session" \\
    --raylet_socket_name="$session/sockets" >/dev/null 2>&1 &
read begun <"$session/begun"
"""


@pytest.fixture
def started(machine):
    """A machine on which Ray can be started; started processes are ended afterwards."""
    fill = {"log": machine.log, "home": machine.home}
    program(machine.programs, "ray", RAY.format(**fill))
    for name in ("raytrain-plus", "sudo"):
        program(machine.programs, name, f'#!/bin/sh\necho {name} "$@" >>{machine.log}\n')
    yield machine
    for end in machine.home.glob("ray/session_*/end"):
        with contextlib.suppress(OSError):  # it has ended and does not read
            os.close(os.open(end, os.O_WRONLY | os.O_NONBLOCK))


def start(machine, **settings):
    return machine.run(
        "start.sh", "ray", "start", "--head", RAY_TMPDIR=str(machine.home), **settings
    )


def end_raylet(machine):
    """End the raylet that was started last; returns at once."""
    (machine.home / "ray" / "session_latest" / "end").write_text("end\n")


def await_lock(machine):
    """Wait until no process is left of the Ray that was started."""
    (lock,) = machine.home.glob(".raytrain_plus/*.lock")
    subprocess.run(["flock", "--timeout", str(SECONDS), lock, "true"], check=True)


def test_all_ends_with_the_raylet(started):
    start(started)
    # The control: it does not end by itself.
    (lock,) = started.home.glob(".raytrain_plus/*.lock")
    assert subprocess.run(["flock", "--nonblock", lock, "true"], check=False).returncode == 1
    end_raylet(started)
    await_lock(started)
    told = started.done()
    assert told[0] == "ray start --head"
    assert told[-1] == "ray stop"
    assert sorted(told[1:-1]) == ["raytrain-plus node-agent"]


def test_ray_is_started_again_only_when_all_has_ended(started):
    """Otherwise the end of the old Ray would end the new one."""
    start(started)
    end_raylet(started)
    start(started)
    told = [line for line in started.done() if line.startswith("ray ")]
    assert told == ["ray start --head", "ray stop", "ray start --head"]


def test_a_start_that_fails_says_so(started):
    (started.home / "broken").touch()
    assert start(started, check=False).returncode != 0
    await_lock(started)  # and does not hold the lock
    assert started.done() == ["ray start --head"]


def test_a_cloud_machine_is_switched_off_at_the_end(started):
    start(started, POWER_OFF_AFTER="10")
    end_raylet(started)
    await_lock(started)
    told = [line for line in started.done() if line.startswith("sudo")]
    # First the shutdown that the previous Ray may have scheduled is cancelled.
    assert told == ["sudo shutdown -c", "sudo shutdown -h +10"]


def test_no_link_in_a_shared_folder_is_followed(started, tmp_path):
    """A lock that another user holds there does not keep Ray from starting either."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for name in (f"raytrain_plus-{os.getuid()}.lock", f"raytrain_plus-{os.getuid()}"):
        (started.home / name).symlink_to(precious)
    start(started)
    assert precious.read_text() == "precious"
    own = started.home / ".raytrain_plus"
    assert own.stat().st_mode & 0o777 == 0o700
    end_raylet(started)
    await_lock(started)


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o775])
def test_the_folder_that_ray_up_has_made_is_used(started, mode):
    own = started.home / ".raytrain_plus"
    own.mkdir()
    own.chmod(mode)
    start(started)
    assert own.stat().st_mode & 0o777 == 0o700
    end_raylet(started)
    await_lock(started)


@pytest.mark.parametrize("spoil", ["link", "open"])
def test_the_folder_of_locks_belongs_to_no_other_user(started, tmp_path, spoil):
    own, elsewhere = started.home / ".raytrain_plus", tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if spoil == "link":
        own.symlink_to(elsewhere)
    else:
        own.mkdir(mode=0o777)
        own.chmod(0o777)
    failed = start(started, check=False)
    assert failed.returncode == 1
    assert ".raytrain_plus is to be a folder of" in failed.stderr
    assert list(elsewhere.iterdir()) == []
    assert started.done() == []
