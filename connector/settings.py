"""All settings: frozen, nested, and the only reader of the environment, of files and of secrets.

Every setting is also a variable: ``kafka.bootstrap_servers`` is ``CONNECTOR_KAFKA__BOOTSTRAP_SERVERS``,
and the variable wins. Every secret ``x`` may be a file instead: ``x_file`` names it, and it is read again
at every use, so a rotated secret needs no restart.
"""

from __future__ import annotations

import os
import re
import socket
from base64 import b64encode
from pathlib import Path
from typing import Annotated, Any, Literal

from confluent_kafka import KafkaException, Producer
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
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
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from connector import configfile
from connector.model import Topics
from connector.stream import dialect
from connector.stream.dialect import Dialect

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
        "isolation.level", "auto.offset.reset", "partition.assignment.strategy", "partitioner",
        "session.timeout.ms", "transaction.timeout.ms", "retry.backoff.ms", "message.max.bytes",
        "sasl.password", "metadata.broker.list", "acks", "request.required.acks",
    }
)  # fmt: skip
"""librdkafka properties that the delivery guarantee depends on, or that have a setting of their own."""


def _readable(path: Path) -> Path:
    try:
        content = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from None
    if not content:
        raise ValueError(f"{path} is empty")
    return path


SecretFile = Annotated[Path, AfterValidator(_readable)]


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class NoAuth(_Group):
    """The upstream asks for no credentials."""

    kind: Literal["none"] = "none"

    def authorization(self) -> str | None:
        """Return the Authorization header."""
        return None


class BearerAuth(_Group):
    """An access token."""

    kind: Literal["bearer"]
    token: SecretStr | None = None
    token_file: SecretFile | None = None

    @model_validator(mode="after")
    def _one_source(self) -> BearerAuth:
        _one_of("token", self.token, self.token_file)
        return self

    def authorization(self) -> str | None:
        """Return the Authorization header."""
        return f"Bearer {_secret(self.token, self.token_file)}"


class BasicAuth(_Group):
    """A user and a password."""

    kind: Literal["basic"]
    username: str = Field(min_length=1)
    password: SecretStr | None = None
    password_file: SecretFile | None = None

    @model_validator(mode="after")
    def _one_source(self) -> BasicAuth:
        _one_of("password", self.password, self.password_file)
        return self

    def authorization(self) -> str | None:
        """Return the Authorization header."""
        pair = f"{self.username}:{_secret(self.password, self.password_file)}"
        return f"Basic {b64encode(pair.encode()).decode()}"


class DebounceSettings(_Group):
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


class StreamSettings(_Group):
    """One upstream stream, e.g. ``CONNECTOR_STREAMS__TECH__URL``."""

    url: HttpUrl
    """Where the stream is served."""

    dialect: str = "twitter-v1"
    """The upstream's manners."""

    override: Annotated[dict[str, Any], Field(validate_default=True)] = {}
    """Keys of the dialect that this upstream does otherwise; null removes one."""

    auth: Annotated[NoAuth | BearerAuth | BasicAuth, Field(discriminator="kind")] = NoAuth()
    debounce: DebounceSettings = DebounceSettings()

    @field_validator("url")
    @classmethod
    def _without_secrets(cls, url: HttpUrl) -> HttpUrl:
        if url.username or url.password:
            raise ValueError("holds credentials, which belong under auth: addresses are logged")
        return url

    @field_validator("dialect")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in dialect.names():
            raise ValueError(f"no such dialect; there are: {', '.join(dialect.names())}")
        return name

    @field_validator("override")
    @classmethod
    def _fits(cls, override: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "dialect" in info.data:
            try:
                dialect.load(info.data["dialect"], override)
            except ValidationError as error:
                raise ValueError("\n".join(configfile.explain(error))) from None
        return override

    def manners(self) -> Dialect:
        """Return the dialect with the overrides laid over it."""
        return dialect.load(self.dialect, self.override)


class TopicSettings(_Group):
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


class KafkaSettings(_Group):
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
    """Further librdkafka properties, e.g. ``security.protocol``."""

    password: SecretStr | None = None
    """Becomes ``sasl.password``."""

    password_file: SecretFile | None = None
    topics: TopicSettings = TopicSettings()
    control_partitions: PositiveInt = 6
    """Partitions given to the control topic at its creation: as many replicas can share the streams."""

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
            Producer(properties)
        except KafkaException as error:
            raise ValueError(f"client: {error.args[0].str()}") from None
        except (TypeError, AttributeError):  # callbacks and the like, which no file can hold
            raise ValueError("client: holds a property that is no text or number") from None
        return self

    def properties(self, replica: str) -> dict[str, Any]:
        """Return what every librdkafka client of *replica* needs to find and enter the cluster."""
        secret = {}
        if self.password or self.password_file:
            secret = {"sasl.password": _secret(self.password, self.password_file)}
        return {
            "bootstrap.servers": self.bootstrap_servers,
            "client.id": f"connector-{replica}",
            "log_level": 0,  # one line per broker and attempt; health says it once
            **self.client,
            **secret,
        }


class DeliverySettings(_Group):
    """How statuses are written."""

    commit_interval_s: Annotated[float, Field(ge=0, le=10)] = 0.02
    """Shortest time between two transactions, in seconds: what latency is traded for fewer commits."""

    outbox_bytes: Annotated[int, Field(ge=1 << 20)] = 64 << 20
    """Readers pause while more than this waits to be written."""


class OpsSettings(_Group):
    """Where ``/livez``, ``/readyz`` and ``/metrics`` are served."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080


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
    streams: Annotated[dict[Name, StreamSettings], Field(min_length=1)]
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


def _one_of(name: str, secret: SecretStr | None, file: Path | None) -> None:
    if (secret is None) == (file is None):
        raise ValueError(f"give exactly one of {name} and {name}_file")
    if secret is not None and not secret.get_secret_value():
        raise ValueError(f"{name} is empty")


def _secret(secret: SecretStr | None, file: Path | None) -> str:
    """Return a secret; a file is read anew, because it may have been rotated."""
    assert file is not None or secret is not None
    text = file.read_text("utf-8").strip() if file is not None else secret.get_secret_value()  # type: ignore[union-attr]
    if not text.isprintable():
        raise ValueError(f"{file or 'the secret'} holds control characters")
    return text
