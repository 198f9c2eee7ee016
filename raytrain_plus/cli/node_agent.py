"""The command that runs on every node of a cluster; imports neither torch nor the trainer."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from raytrain_plus.nodes.agent import Agent
from raytrain_plus.nodes.metadata import NoticeFile, NoticeSource, notice_source
from raytrain_plus.ray_cluster.gcs import ClusterError, Gcs
from raytrain_plus.ray_cluster.joining import head_address


def node_agent(  # noqa: PLR0913 - one option each
    *,
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Ray's head. Default: the head of this host's Ray."),
    ] = None,
    node_id: Annotated[
        str | None, typer.Option(help="Ray's id of the node. Default: the one on this host.")
    ] = None,
    provider: Annotated[
        Literal["auto", "ec2", "gce", "none"],
        typer.Option(help="The metadata service to query; auto: the one that answers."),
    ] = "auto",
    on_rebalance: Annotated[
        Literal["drain", "ignore"],
        typer.Option(help="What to do on EC2's rebalance recommendation."),
    ] = "drain",
    notice_file: Annotated[
        Path | None,
        typer.Option(help="A file that announces the node's end, in seconds or as a time."),
    ] = None,
    grace: Annotated[
        float, typer.Option(help="Seconds from SIGTERM, or from such a file, to the end.", min=1.0)
    ] = 30.0,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the node to join.")] = 120.0,
    metadata_url: Annotated[
        str | None, typer.Option(help="URL of the metadata service, for tests.")
    ] = None,
) -> None:
    """Have Ray drain this node when its cloud says that it will be taken away, or on SIGTERM."""
    try:
        if metadata_url and not metadata_url.startswith("http://"):
            raise ValueError(f"metadata-url {metadata_url!r} does not begin with http://")
        head = head_address(address)
        if head is None:
            raise ClusterError("no Ray runs on this host: start it, or give --address HOST:PORT")
        service = notice_source(provider, metadata_url, rebalance=on_rebalance == "drain")
        sources: list[NoticeSource] = [service] if service else []
        if notice_file:
            sources.append(NoticeFile(notice_file, grace))
        Agent(Gcs(head), sources, _say).run(node_id, grace, wait)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(2) from error
    except ClusterError as error:
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _say(line: str) -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    sys.stdout.write(f"{now} node-agent {line}\n")
    sys.stdout.flush()
