"""All settings: frozen, nested, and with `auth` the only reader of the environment, files and secrets.

Every setting is also a variable: ``kafka.bootstrap_servers`` is ``CONNECTOR_KAFKA__BOOTSTRAP_SERVERS``,
and the variable wins. Every secret ``x`` may be a file instead: ``x_file`` names it, and it is read again
at every use, so a rotated secret needs no restart.
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote

from confluent_kafka import KafkaException, Producer
from pydantic import (
    AfterValidator,
    Field,
    HttpUrl,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from connector import configfile
from connector.auth import Auth, NoAuth, SecretFile, reader
from connector.configfile import Group
from connector.control import shares
from connector.delivery.promise import Mode, Promise, promise
from connector.delivery.transactions import transactional
from connector.model import Topics
from connector.stream import dialect
from connector.stream.dialect import Dialect
from connector.stream.transport import Tls

PREFIX = "CONNECTOR_"


def _name(text: str) -> str:
    if text in {".", ".."} or not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", text):
        raise ValueError(f"{text!r} may hold only letters, digits, dots, dashes and underscores")
    return text


Name = Annotated[str, AfterValidator(_name)]
"""What Kafka accepts as a topic's name: no slash, no space."""


def _servers(text: str) -> str:
    if not re.fullmatch(r"[^\s,:]+:\d+(,[^\s,:]+:\d+)*", text):
        raise ValueError("expected host:port, several separated by commas")
    return text


_OWNED = frozenset(
    {
        "bootstrap.servers", "group.id", "group.instance.id", "group.protocol", "transactional.id",
        "enable.auto.commit", "enable.auto.offset.store", "enable.idempotence", "enable.partition.eof",
        "isolation.level", "auto.offset.reset", "partition.assignment.strategy", "partitioner", "acks",
        "session.timeout.ms", "transaction.timeout.ms", "retry.backoff.ms", "message.max.bytes",
        "sasl.password", "metadata.broker.list", "request.required.acks", "metadata.recovery.strategy",
        "batch.size", "queue.buffering.max.messages", "queue.buffering.max.kbytes",
    }
)  # fmt: skip
"""librdkafka properties that the delivery guarantee depends on, or that have a setting of their own."""


class DebounceSettings(Group):
    """How predicate changes become restarts."""

    min_s: NonNegativeFloat = 120.0
    """Shortest time between two restarts, in seconds.

    Upstreams count connection attempts: Twitter v1.1 allows five in five minutes.
    """

    max_s: PositiveFloat = 600.0
    """Longest time a lone change may wait after a restart; more pending changes shorten the wait."""

    @model_validator(mode="after")
    def _in_order(self) -> DebounceSettings:
        if self.min_s > self.max_s:
            raise ValueError(f"min_s ({self.min_s:g}) is above max_s ({self.max_s:g})")
        return self


class TlsSettings(Group):
    """TLS towards an upstream. Files that have changed are read anew by the next connection."""

    ca_file: Path | None = None
    """Certificates that vouch for the upstream, in place of the public ones."""

    certificate_file: Path | None = None
    """The client's own certificate, where the upstream asks for one (mTLS)."""

    key_file: Path | None = None
    """Its key, unless the certificate's file holds it too."""

    @model_validator(mode="after")
    def _usable(self) -> TlsSettings:
        if self.key_file is not None and self.certificate_file is None:
            raise ValueError("key_file needs a certificate_file")
        for name, path in self:
            if path is not None and not path.is_file():
                raise ValueError(f"{name}: there is no file {path}")
        if (its := self.tls()) == Tls():
            return self  # a twentieth of a second to find that the public authorities can be read
        try:
            its.context()
        except OSError as error:
            raise ValueError(f"the certificates cannot be used: {error}") from None
        return self

    def tls(self) -> Tls:
        """Return the files as the reader uses them."""
        return Tls(**dict(self))


class StreamSettings(Group):
    """One upstream stream, e.g. ``CONNECTOR_STREAMS__TECH__URL``."""

    url: HttpUrl
    """Where the stream is served."""

    dialect: str = "twitter-v1"
    """The upstream's manners: a name that ``connector dialects`` lists, or the path of a ``.toml`` file."""

    override: dict[str, Any] = Field(default={}, validate_default=True)
    """Keys of the dialect that this upstream does otherwise; null removes one."""

    auth: Auth = NoAuth()
    tls: TlsSettings = TlsSettings()
    proxy: HttpUrl | None = Field(default=None, repr=False)  # may hold a password
    """An HTTP proxy. Variables such as ``HTTPS_PROXY`` are not looked at."""

    allow_link_local: bool = False
    """Whether the upstream may live at a link-local or metadata address, where clouds keep credentials."""

    debounce: DebounceSettings = DebounceSettings()

    partitions: Annotated[int, Field(ge=1, le=shares.MAX_SHARES)] = 1
    """How many streams it runs as, each with a share of the statuses (see ``request.partition``)."""

    @field_validator("url")
    @classmethod
    def _without_secrets(cls, url: HttpUrl) -> HttpUrl:
        if url.username or url.password:
            raise ValueError("holds credentials, which belong under auth: addresses are logged")
        return url

    @field_validator("proxy")
    @classmethod
    def _sendable(cls, proxy: HttpUrl | None) -> HttpUrl | None:
        if proxy is not None and ":" in unquote(proxy.username or ""):
            raise ValueError("its user must not hold a colon")
        try:
            unquote(f"{proxy and proxy.username}{proxy and proxy.password}").encode("latin-1")
        except UnicodeEncodeError:
            raise ValueError("its user and password must be Latin-1: proxies take nothing else") from None
        return proxy

    @field_validator("dialect")
    @classmethod
    def _known(cls, name: str) -> str:
        if name.endswith(".toml"):
            try:
                tomllib.loads(_text(name))
            except OSError as error:
                raise ValueError(f"cannot read {name}: {error.strerror}") from None
            except ValueError as error:
                raise ValueError(f"{name} is no TOML: {error}") from None
        elif name not in dialect.names():
            raise ValueError(f"no such dialect; there are: {', '.join(dialect.names())}, or a .toml file")
        return name

    @field_validator("override")
    @classmethod
    def _fits(cls, override: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "dialect" in info.data:
            try:
                _manners(info.data["dialect"], override)
            except ValidationError as error:
                raise ValueError("\n".join(configfile.explain(error))) from None
        return override

    @model_validator(mode="after")
    def _encrypted(self) -> StreamSettings:
        if self.url.scheme == "http" and self.tls != TlsSettings():
            raise ValueError("tls: the url is not https")
        if self.partitions > 1 and self.manners.request.partition is None:
            raise ValueError("partitions: the dialect has no request.partition, so one connection gets all")
        return self

    def promise(self, mode: Mode) -> Promise:
        """Return what is promised of it when it is written that way."""
        resume = self.manners.resume
        if resume is None:
            return promise(mode, "not_at_all", None)
        return promise(mode, "by_cursor" if resume.since is None else "by_time", resume.reaches_back_s)

    @cached_property
    def manners(self) -> Dialect:
        """The dialect with the overrides laid over it, as they were at the start."""
        return _manners(self.dialect, self.override)


class TopicSettings(Group):
    """Names of the topics."""

    predicates: Name = "predicates"
    statuses: Name = "statuses"
    positions: Name = "connector-positions"
    events: Name = "connector-events"
    dlq: Name = "connector-dlq"

    @model_validator(mode="after")
    def _distinct(self) -> TopicSettings:
        names = list(self.model_dump().values())
        if len(set(names)) < len(names):
            raise ValueError("each of the five topics needs a name of its own")
        return self

    def names(self) -> Topics:
        """Return the names as the rooms use them."""
        return Topics(**self.model_dump())


_RECONNECT_MAX_MS = 1000
"""Longest pause between attempts to reach a broker. librdkafka's own 10 s would be the end of a lease, when a
broker comes back shortly before that."""


class KafkaSettings(Group):
    """Where Kafka is and what is ours there."""

    bootstrap_servers: Annotated[str, AfterValidator(_servers)]
    """``host:port``, several separated by commas."""

    group: Name = "connector"
    """Consumer group on the control topic; replicas of one connector share it."""

    session_timeout_s: Annotated[float, Field(ge=1, le=30)] = 10.0
    """Silence after which a replica counts as dead and others take its streams over, in seconds.

    Brokers refuse less than their ``group.min.session.timeout.ms``, 6 s by default; above 30 s the group
    would sooner miss a stuck process than a dead one.
    """

    client: dict[str, str | int | float | bool] = Field(default={}, repr=False)  # may hold secrets
    """Further librdkafka properties, e.g. ``security.protocol``, or another ``compression.type`` than lz4."""

    password: SecretStr | None = None
    """Becomes ``sasl.password``."""

    password_file: SecretFile | None = None
    topics: TopicSettings = TopicSettings()
    control_partitions: PositiveInt = 6
    """Partitions of the control topic and of the positions: as many replicas can share the streams.

    A stream's home hangs on it; ``connector repartition`` moves to topics with another number.
    """

    status_partitions: PositiveInt = 6
    """Partitions given to the output topic at its creation."""

    @model_validator(mode="after")
    def _accepted(self) -> KafkaSettings:
        if self.password and self.password_file:
            raise ValueError("password and password_file exclude each other")
        if owned := sorted(_OWNED & self.client.keys()):
            raise ValueError(f"client: the connector sets these itself: {', '.join(owned)}")
        properties = {**self.properties("validated"), "log_level": 0}
        del properties["bootstrap.servers"]  # without it librdkafka validates and stays offline
        try:
            Producer(transactional(properties, 1 << 20, "validated"))
        except KafkaException as error:
            raise ValueError(f"client: {error.args[0].str()}") from None
        except (TypeError, AttributeError):  # callbacks and the like, which no file can hold
            raise ValueError("client: holds a property that is no text or number") from None
        return self

    def properties(self, replica: str) -> dict[str, Any]:
        """Return what every librdkafka client of *replica* needs to find and enter the cluster."""
        secret = {}
        if self.password or self.password_file:
            secret = {"sasl.password": reader(self.password, self.password_file)()}
        return {
            "bootstrap.servers": self.bootstrap_servers,
            "client.id": f"connector-{replica}",
            "log_level": 0,  # one line per broker and attempt; health says it once
            "reconnect.backoff.max.ms": _RECONNECT_MAX_MS,
            **self.client,
            **secret,
        }


def _interval_s(given: dict[str, Any]) -> float:
    return 0.002 if given.get("mode") == "at_least_once" else 0.008


class DeliverySettings(Group):
    """How statuses are written."""

    mode: Mode = "exactly_once"
    """In transactions; or acknowledged records first and positions after them, which is some milliseconds
    sooner and needs no transactions, but repeats what was under way whenever something fails."""

    commit_interval_s: float = Field(ge=0, le=10, default_factory=_interval_s)
    """Shortest time between two transactions, in seconds: what latency is traded for fewer commits. 0.008 by
    default; without transactions 0.002."""

    outbox_bytes: Annotated[int, Field(ge=1 << 20)] = 24 << 20
    """While more than this waits to be written, the readers that fill it pause. It counts what small
    statuses weigh in memory, so it bounds their number too."""


class OpsSettings(Group):
    """Where ``/livez``, ``/readyz`` and ``/metrics`` are served."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080


def _apart(streams: dict[str, StreamSettings]) -> dict[str, StreamSettings]:
    shares.check_names({name: its.partitions for name, its in streams.items()})
    return streams


class Settings(BaseSettings):
    """All of the above; the only class that reads the environment."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )

    replica: Name = Field(default_factory=socket.gethostname)
    """This process's name, stable over restarts and unique in the group; in Kubernetes the pod's.

    Its transactional id is made of it: two living processes of one name stop each other.
    """

    kafka: KafkaSettings
    streams: Annotated[dict[Name, StreamSettings], Field(min_length=1), AfterValidator(_apart)]
    """The upstream streams by name; the name is the first part of a control record's key."""

    delivery: DeliverySettings = DeliverySettings()
    ops: OpsSettings = OpsSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 (pydantic's signature)
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the environment, then the file, which `load` hands over as arguments."""
        return env_settings, init_settings


def load(path: Path | None) -> Settings:
    """Read the settings from the file *path*, if any, and the environment.

    Raises:
        ConfigurationError: naming every mistake with its place.
    """
    return configfile.load(Settings, PREFIX, path, os.environ)


def _text(name: str) -> str:
    """Return a dialect's TOML, shipped or the user's own."""
    return Path(name).read_text("utf-8") if name.endswith(".toml") else dialect.text(name)


_kept: dict[tuple[str, str], Dialect] = {}


def _manners(name: str, override: dict[str, Any]) -> Dialect:
    """Return a dialect with *override* laid over it: one for all streams that have the same."""
    key = _text(name), repr(override)
    if key not in _kept:
        _kept[key] = dialect.parse(key[0], override)
    return _kept[key]
