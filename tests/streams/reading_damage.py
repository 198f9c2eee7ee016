"""Reads damaged data in a separate process, so that crashes are seen and memory is bounded.

Run as a program, it reads a path from each line of its input, and answers with one line each.
"""

import hashlib
import json
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
MEMORY = 2 << 30  # bytes of address space that reading may take
SECONDS = 20.0  # for one file, on a busy machine


def damaged(content: bytes, seed: int) -> bytes:
    """Return a file with one damage, which depends on the seed only."""
    draw = np.random.default_rng(seed)
    damage = bytearray(content)
    at = int(draw.integers(len(damage)))
    match int(draw.integers(7)):
        case 0 | 1 | 2:
            damage[at] ^= 1 << int(draw.integers(8))
        case 3:
            damage[at] = int(draw.choice([0, 0x7F, 0x80, 0xFF]))
        case 4:
            number = int(draw.choice([-1, -(2**31), 2**31 - 1, 10**9, 2**20]))
            at = at // 4 * 4
            damage[at : at + 4] = struct.pack("<i", number)[: len(damage) - at]
        case 5:
            number = int(draw.choice([-1, 2**62, 10**12, 2**31]))
            at = at // 8 * 8
            damage[at : at + 8] = struct.pack("<q", number)[: len(damage) - at]
        case 6:
            length = int(draw.integers(1, 64))
            other = int(draw.integers(len(damage)))
            damage[at : at + length] = damage[other : other + length]
    return bytes(damage)


def answers(paths: list[Path], how: str = "path") -> dict[Path, dict]:
    """Return the result of reading each path; `crash` if it ended the process."""
    found: dict[Path, dict] = {}
    left = list(paths)
    while left:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.streams.reading_damage", how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        said, errors = process.communicate("".join(f"{path}\n" for path in left))
        lines = said.splitlines()
        for path, line in zip(left, lines, strict=False):
            found[path] = json.loads(line)
        left = left[len(lines) :]
        if left:
            end = f"{process.returncode}: {errors[-300:]}"
            found[left.pop(0)] = {"outcome": "crash", "error": end}
    return found


def all_rows(data) -> str:
    """Return a digest of all rows of some data."""
    from raytrain_plus.streams.loader import load_part
    from raytrain_plus.streams.opening import open_source

    source = open_source(data)
    batch = load_part(source, source.plain_order(1), 0, 0, 0, source.total_rows)
    source.release()
    digest = hashlib.sha256()
    for name in sorted(batch):
        for row in batch[name]:
            value = row.numpy().tobytes() if hasattr(row, "numpy") else repr(row).encode()
            digest.update(name.encode() + value)
    return digest.hexdigest()


def _peak() -> int:
    """Return the most memory that this process held, in KiB.

    `ru_maxrss` would include the memory that the parent process held at the start.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def _main(how: str) -> None:
    from raytrain_plus.storage.errors import StorageError
    from raytrain_plus.streams.columns import DataError
    from raytrain_plus.streams.stream import Stream

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for line in sys.stdin:
        path = Path(line.rstrip("\n"))
        data = (
            path if how == "path" else Stream(path, cache=path.parent / f".{path.name}", deadline=1)
        )
        began = time.monotonic()
        try:
            answer = {"outcome": "rows", "digest": all_rows(data)}
        except (DataError, StorageError) as error:
            answer = {"outcome": "refused", "error": str(error)}
        except BaseException as error:  # noqa: BLE001 - that is what is looked for
            answer = {"outcome": "other", "error": f"{type(error).__name__}: {error}"}
        answer["seconds"] = time.monotonic() - began
        answer["peak"] = _peak()
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main(sys.argv[1])
