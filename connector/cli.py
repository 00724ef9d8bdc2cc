"""The commands: parse, call, print."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from connector import __version__
from connector.errors import ConfigurationError, ConnectorError, WriteRefused

if TYPE_CHECKING:
    from connector.publisher import Publisher
    from connector.settings import Settings
    from connector.stream.request import Predicate
    from connector.topics import Wanted

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

    from connector import app
    from connector.ops import logs

    logs.configure()
    # What is there now stays, and statuses die young and in no cycles: there is little to look for.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    runner = asyncio.run
    with contextlib.suppress(ImportError):  # not made for Windows
        import uvloop

        runner = uvloop.run
    try:
        code = runner(app.run(settings))
    except WriteRefused as error:
        typer.echo(f"Kafka refuses what is written: {error}", err=True)
        raise typer.Exit(1) from None
    except ConnectorError as error:
        typer.echo(f"{error}\nTo create what is missing: connector topics --create{_said(config)}", err=True)
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
    from connector.topics import TIMEOUT_S, Cluster

    cluster = Cluster(settings.kafka.properties(settings.replica), TIMEOUT_S)
    needed, statuses, longest = _needed(settings)
    try:
        with _kafka_errors(settings):
            if create:
                for name in cluster.create(needed):
                    typer.echo(f"created {name}")
            cluster.verify(needed, statuses, longest)
    except ConnectorError as error:
        typer.echo(str(error).replace("; ", "\n"), err=True)
        raise typer.Exit(EXIT_TOPICS) from None
    typer.echo("all topics are there and fit")


@main.command()
def repartition(
    predicates_from: Annotated[str, typer.Option("--predicates-from", help="The control topic until now.")],
    positions_from: Annotated[str, typer.Option("--positions-from", help="The positions topic until now.")],
    config: Config = None,
) -> None:
    """Change the number of control partitions: copy all that counts to new topics.

    Stop all replicas. Give the configuration the new number (kafka.control_partitions) and new names
    (kafka.topics.predicates, kafka.topics.positions), and create them: connector topics --create. Run this.
    Start the replicas, and let publishers write to the new control topic. The old topics stay as they are.

    It copies everything or nothing, and refuses while a replica runs, or if the new topics are in use.
    """
    settings = _settings(config)
    from connector.repartition import Repartition
    from connector.topics import TIMEOUT_S, Cluster

    kafka, names = settings.kafka, settings.kafka.topics.names()
    properties = kafka.properties(settings.replica)
    try:
        with _kafka_errors(settings):
            Cluster(properties, TIMEOUT_S).verify(*_needed(settings))
            copied = Repartition(
                kafka=properties,
                group=kafka.group,
                old=replace(names, predicates=predicates_from, positions=positions_from),
                new=names,
                partitions=kafka.control_partitions,
                session_timeout_s=kafka.session_timeout_s,
            ).run()
    except ConnectorError as error:
        typer.echo(str(error).replace("; ", "\n"), err=True)
        raise typer.Exit(EXIT_TOPICS) from None
    typer.echo(
        f"copied the positions of {copied.streams} streams, what {copied.keys} control keys ask for, "
        f"and {copied.fresh} control records that are still to be answered"
    )


predicates = typer.Typer(help="What a stream asks its upstream for: publish, look, wait for the answer.")
main.add_typer(predicates, name="predicates", no_args_is_help=True)

Stream = Annotated[str, typer.Argument(help="A stream of the configuration.")]
As = Annotated[str, typer.Option("--as", help="Who publishes; each publisher has a key of its own.")]
Wait = Annotated[
    bool, typer.Option("--wait", help="Wait for the last answer: applied, refused, rejected ...")
]
Timeout = Annotated[float | None, typer.Option("--timeout", help="Seconds to wait at most.")]


@predicates.command()
def put(
    stream: Stream,
    terms: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...", help="e.g. track=kafka")],
    publisher: As = "",
    *,
    paused: Annotated[bool, typer.Option("--paused", help="On record, but not asked for yet.")] = False,
    wait: Wait = False,
    timeout: Timeout = None,
    config: Config = None,
) -> None:
    """Publish what one publisher asks for; it replaces what the same publisher asked for before."""
    wanted: dict[str, list[str]] = {}
    for term in terms:
        name, equals, value = term.partition("=")
        if not equals or not _is_text(term):
            typer.echo(f"{term!r}: expected NAME=VALUE in UTF-8", err=True)
            raise typer.Exit(EXIT_CONFIGURATION)
        wanted.setdefault(name, []).append(value)
    contribution = {**wanted, "paused": True} if paused else wanted
    _publish(config, stream, publisher, contribution, timeout, is_waiting=wait)


@predicates.command()
def remove(
    stream: Stream,
    publisher: As = "",
    *,
    wait: Wait = False,
    timeout: Timeout = None,
    config: Config = None,
) -> None:
    """Take back what one publisher asks for; without any publisher the stream stops."""
    _publish(config, stream, publisher, None, timeout, is_waiting=wait)


@predicates.command()
def get(stream: Stream, config: Config = None) -> None:
    """Print what a stream asks for, and who asks for what, as JSON."""
    import orjson

    settings, limits = _limits(config, stream)
    with _kafka_errors(settings):
        contributions = _publisher(settings).contributions(stream, limits)
    union = contributions.union()
    by_key = {key.decode(): part.as_dict() for key, part in sorted(contributions.by_key().items())}
    told = {"predicates": union.version, "union": union.as_dict(), "by_key": by_key}
    typer.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())


@predicates.command()
def schema(stream: Stream, config: Config = None) -> None:
    """Print the JSON Schema of a stream's control records."""
    import orjson

    from connector.control import predicates as control

    _, limits = _limits(config, stream)
    typer.echo(orjson.dumps(control.schema(stream, limits), option=orjson.OPT_INDENT_2).decode())


@predicates.command()
def watch(
    stream: Annotated[str | None, typer.Argument(help="Of this stream only.")] = None, config: Config = None
) -> None:
    """Print the answers to all publishers as they are given, until Ctrl-C."""
    settings = _settings(config)
    from connector.control.shares import whole

    with _kafka_errors(settings), contextlib.suppress(KeyboardInterrupt):
        for answer in _publisher(settings).answers():
            if answer is not None and stream in {
                None,
                subject := answer.get("subject"),
                whole(subject or ""),
            }:
                _tell(answer)


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


def _needed(settings: Settings) -> tuple[list[Wanted], str, int]:
    """Return what the topics must be, the output topic's name, and the length of the longest status."""
    from connector.topics import wanted

    kafka, names = settings.kafka, settings.kafka.topics.names()
    longest = max(one.manners.framing.max_frame_bytes for one in settings.streams.values())
    return wanted(names, kafka.control_partitions, kafka.status_partitions), names.statuses, longest


def _publish(
    config: Path | None,
    stream: str,
    publisher: str,
    contribution: Mapping[str, object] | None,
    timeout_s: float | None,
    *,
    is_waiting: bool,
) -> None:
    import orjson

    from connector.awaited import awaited
    from connector.control.predicates import check_size, parse, stream_of
    from connector.errors import PredicatesRejected

    settings, limits = _limits(config, stream)
    if not _is_text(publisher):
        typer.echo(f"--as {publisher!r}: expected UTF-8", err=True)
        raise typer.Exit(EXIT_CONFIGURATION)
    key = f"{stream}/{publisher}" if publisher else stream
    value = None if contribution is None else orjson.dumps(contribution)
    try:
        stream_of(key.encode())
        if value is not None:
            check_size(value)
            parse(value, limits)
    except PredicatesRejected as rejected:
        typer.echo(f"{rejected.pointer or stream}: {rejected}", err=True)
        raise typer.Exit(EXIT_CONFIGURATION) from None
    kafka = _publisher(settings)
    with _kafka_errors(settings), contextlib.closing(kafka.answers()) as answers:
        if is_waiting:
            next(answers)  # what is answered from here on is seen
        partition, offset = kafka.put(stream, key, value)
        typer.echo(f"published {key} to {settings.kafka.topics.predicates}/{partition}/{offset}")
        if is_waiting:
            is_in_force = awaited(answers, partition, offset, timeout_s, _tell)
            if is_in_force is None:
                typer.echo(f"no final answer within {timeout_s:g} s", err=True)
            raise typer.Exit(0 if is_in_force else 1)


def _is_text(argument: str) -> bool:
    """Whether an argument is UTF-8; what is not comes with lone surrogates."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tell(answer: Mapping[str, Any]) -> None:
    import orjson

    kind = answer["type"].removeprefix("predicates.")
    typer.echo(f"{answer['time']} {kind:10} {orjson.dumps(answer['data']).decode()}")


def _limits(config: Path | None, stream: str) -> tuple[Settings, dict[str, Predicate]]:
    settings = _settings(config)
    if stream not in settings.streams:
        typer.echo(f"no stream {stream!r}; there are: {', '.join(sorted(settings.streams))}", err=True)
        raise typer.Exit(EXIT_CONFIGURATION)
    return settings, settings.streams[stream].manners.request.predicates


def _publisher(settings: Settings) -> Publisher:
    from connector.publisher import Publisher

    kafka = settings.kafka
    return Publisher(kafka.properties(settings.replica), kafka.group, kafka.topics.names())


@contextlib.contextmanager
def _kafka_errors(settings: Settings) -> Iterator[None]:
    """Turn Kafka's refusals into one line and exit code 1."""
    from confluent_kafka import KafkaException

    try:
        yield
    except KafkaException as error:
        typer.echo(f"Kafka at {settings.kafka.bootstrap_servers}: {error.args[0].str()}", err=True)
        raise typer.Exit(1) from None


def _said(config: Path | None) -> str:
    return "" if config is None else f" --config {config}"


if __name__ == "__main__":
    sys.exit(main())
