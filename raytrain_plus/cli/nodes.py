"""The command that checks a cluster's nodes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import ray
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raytrain_plus.cli.answers import Address, Debug, Json, answer
from raytrain_plus.cli.remote import RemoteError, here_or_there
from raytrain_plus.nodes.diagnosis import Expected
from raytrain_plus.nodes.doctor import diagnosis_of, examine, read_cluster_file
from raytrain_plus.ray_cluster.gcs import ClusterError
from raytrain_plus.ray_cluster.joining import join


def doctor(
    *,
    address: Address = None,
    expect: Annotated[
        int | None, typer.Option(help="How many nodes there should be, including the head.", min=1)
    ] = None,
    cluster_file: Annotated[
        Path | None, typer.Option(help="The launch file, which lists the nodes there should be.")
    ] = None,
    deadline: Annotated[float, typer.Option(help="Seconds for a node to answer.", min=1.0)] = 60.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check every node of a cluster; exit status 1 if something is wrong."""

    def looked() -> dict[str, Any]:
        with joined(address):
            return {"nodes": [asdict(node) for node in examine(deadline)]}

    def run() -> dict[str, Any]:
        expected = read_cluster_file(cluster_file) if cluster_file else Expected()
        if expect is not None:
            expected = Expected(expect, expected.addresses, expected.pitfalls)
        try:
            found = here_or_there(address, ["doctor", "--deadline", str(deadline)], looked)
        except RemoteError as error:
            if not (error.said and "nodes" in error.said):
                raise
            found = error.said
        if "nodes" not in found:
            raise ClusterError("the cluster answers something else than its nodes")
        # The expected nodes are known here, also if the nodes were checked from another machine.
        found = diagnosis_of(found["nodes"], expected).as_data()
        if not as_json:
            show(found, Console())
        return found

    if not answer(run, as_json=as_json, debug=debug)["well"]:
        raise typer.Exit(1)


@contextmanager
def joined(address: str | None) -> Iterator[None]:
    """Connect to a cluster for the duration of the block."""
    connected = ray.is_initialized()
    if not connected:
        join(address)
    try:
        yield
    finally:
        if not connected:
            ray.shutdown()


def show(found: dict[str, Any], console: Console) -> None:
    """Print the nodes as a table, and the problems below it."""
    table = Table("node", "address", "cores", "instructions", "clock", "disk free", "agent", "says")
    for node in found["nodes"]:
        row = (
            node["host"] + (" (head)" if node["is_head"] else ""),
            node["address"],
            str(node["cores"]),
            node["hardware"].get("instruction set", ""),
            f"{1000 * node['clock_offset']:+.0f} ms",
            f"{node['disk'][0] / 1e9:.0f} GB",
            "yes" if node["agent"] else "no",
            "draining" if node["draining"] else node["trouble"] or node["computed"][:12],
        )
        table.add_row(*map(escape, row))
    console.print(table)
    versions = [node["versions"] for node in found["nodes"] if node["versions"]]
    if versions:
        told = ", ".join(f"{name} {version}" for name, version in versions[0].items())
        console.print(told, highlight=False, markup=False)
    for problem in found["problems"]:
        mark = "WRONG" if problem["grave"] else "note"
        line = f"{mark}: {problem['where']}: {problem['what']}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
        console.print(f"       {problem['do']}", highlight=False, markup=False, soft_wrap=True)
    if found["well"]:
        console.print(f"{len(found['nodes'])} nodes, nothing wrong", highlight=False)
