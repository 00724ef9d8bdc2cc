"""The commands: parse, call, print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from connector import __version__
from connector.errors import ConfigurationError, ConnectorError

if TYPE_CHECKING:
    from connector.settings import Settings

EXIT_CONFIGURATION = 2
EXIT_TOPICS = 3

main = typer.Typer(
    name="connector",
    help="Kafka stream-ingestion connector: predicates in, statuses out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # its frames show local variables, and so secrets
    add_completion=False,
)

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="YAML file; every setting is also a CONNECTOR_… variable, which wins.",
        show_default=False,
    ),
]


@main.command()
def run(config: Config = None) -> None:
    """Run the connector until SIGTERM or Ctrl-C."""
    settings = _settings(config)
    import asyncio
    import contextlib

    from connector import app
    from connector.ops import logs

    logs.configure()
    runner = asyncio.run
    with contextlib.suppress(ImportError):  # not made for Windows
        import uvloop

        runner = uvloop.run
    try:
        code = runner(app.run(settings))
    except ConnectorError as error:
        typer.echo(
            f"{error}\nTo create what is missing: connector topics --create{_said(config)}",
            err=True,
        )
        raise typer.Exit(EXIT_TOPICS) from None
    except OSError as error:
        typer.echo(f"ops port {settings.ops.host}:{settings.ops.port}: {error.strerror}", err=True)
        raise typer.Exit(1) from None
    raise typer.Exit(code)


@main.command()
def topics(
    config: Config = None,
    *,
    create: Annotated[bool, typer.Option("--create", help="Create those that are missing.")] = False,
) -> None:
    """Show what the connector's topics must be, and whether they are."""
    settings = _settings(config)
    from confluent_kafka import KafkaException

    from connector.topics import Cluster, wanted

    kafka = settings.kafka
    needed = wanted(kafka.topics.names(), kafka.control_partitions, kafka.status_partitions)
    cluster = Cluster(kafka.properties(settings.replica))
    longest = max(one.manners.framing.max_frame_bytes for one in settings.streams.values())
    try:
        if create:
            for name in cluster.create(needed):
                typer.echo(f"created {name}")
        cluster.verify(needed, kafka.topics.statuses, longest)
    except KafkaException as error:
        typer.echo(f"Kafka at {kafka.bootstrap_servers}: {error.args[0].str()}", err=True)
        raise typer.Exit(1) from None
    except ConnectorError as error:
        typer.echo(str(error).replace("; ", "\n"), err=True)
        raise typer.Exit(EXIT_TOPICS) from None
    typer.echo("all topics are there and fit")


dialects = typer.Typer(help="The manners of upstreams that come with the connector.")
main.add_typer(dialects, name="dialects")


@dialects.callback(invoke_without_command=True)
def list_dialects(context: typer.Context) -> None:
    """List them, with what each is for."""
    if context.invoked_subcommand is None:
        from connector.stream import dialect

        for name in dialect.names():
            typer.echo(f"{name:12} {dialect.text(name).splitlines()[0].removeprefix('# ')}")


@dialects.command()
def show(name: str) -> None:
    """Print one: a file to start your own from."""
    from connector.stream import dialect

    if name not in dialect.names():
        typer.echo(f"no dialect {name!r}; there are: {', '.join(dialect.names())}", err=True)
        raise typer.Exit(EXIT_CONFIGURATION)
    typer.echo(dialect.text(name), nl=False)


@main.command()
def demo(
    seconds: Annotated[
        float | None, typer.Option(help="End after so many seconds; Ctrl-C ends it too.")
    ] = None,
) -> None:
    """See the whole arch on this machine: a real Kafka, a sample upstream and the connector."""
    from connector.demo import story

    raise typer.Exit(story.tell(seconds))


@main.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _settings(config: Path | None) -> Settings:
    from connector.settings import load

    try:
        return load(config)
    except ConfigurationError as error:
        for mistake in error.mistakes:
            typer.echo(mistake, err=True)
        raise typer.Exit(EXIT_CONFIGURATION) from None


def _said(config: Path | None) -> str:
    return "" if config is None else f" --config {config}"


if __name__ == "__main__":
    sys.exit(main())
