"""Runs simulated schedules: `python -m tests.scale --seed N`, or `--first N --count M`."""

import argparse
import collections
import time

from tests.scale.simulation import simulate


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="replay one schedule, and print its events")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    given = parser.parse_args()
    if given.seed is not None:
        found = simulate(given.seed)
        print(*found.lines, sep="\n")  # noqa: T201
        print(f"drawn: {', '.join(found.drawn)}\nended: {found.ending}")  # noqa: T201
        print(*found.broken, sep="\n")  # noqa: T201
        return int(bool(found.broken))
    began, endings, broken = time.process_time(), collections.Counter(), []
    for seed in range(given.first, given.first + given.count):
        found = simulate(seed)
        endings[found.ending.split(",")[0][:60] if not found.broken else "BROKEN"] += 1
        if found.broken:
            broken.append(seed)
            print(f"seed {seed}: {found.drawn}: {found.broken[0].strip()[-300:]}", flush=True)  # noqa: T201
    seconds = time.process_time() - began
    print(f"{given.count} schedules in {seconds:.1f} s of CPU: {dict(endings)}; broken: {broken}")  # noqa: T201
    return int(bool(broken))


if __name__ == "__main__":
    raise SystemExit(main())
