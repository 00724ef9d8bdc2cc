"""Whatever is wrong with a configuration is told in lines that begin with its place, and tell no secret.

What the settings themselves demand stands in `test_settings`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from harness import authorization
from typer.testing import CliRunner

from connector.auth import BasicAuth
from connector.cli import main
from connector.errors import ConfigurationError
from connector.settings import _OWNED, Settings, load

SECRET = "hunter2-and-more"
STREAM = {"url": "http://127.0.0.1:1/stream"}
GOOD = {"kafka": {"bootstrap_servers": "127.0.0.1:9092"}, "streams": {"tech": STREAM}}

Write = Callable[[object], Path]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("CONNECTOR_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def config(tmp_path: Path) -> Write:
    """Return a writer of configuration files: a mapping, or text or bytes as they are."""

    def write(content: object) -> Path:
        path = tmp_path / "connector.yaml"
        if not isinstance(content, bytes):
            content = (content if isinstance(content, str) else yaml.safe_dump(content)).encode()
        path.write_bytes(content)
        return path

    return write


def told(path: Path | None) -> list[str]:
    """Run the connector with a configuration that cannot work, and return what it says."""
    with pytest.raises(ConfigurationError):  # or else it would run, and never end
        load(path)
    result = CliRunner().invoke(main, ["run"] if path is None else ["run", "--config", str(path)])
    assert result.exit_code == 2, result.output
    assert SECRET not in result.output
    assert "Traceback" not in result.output
    return result.output.splitlines()


def with_auth(**auth: object) -> dict[str, object]:
    return {**GOOD, "streams": {"tech": {**STREAM, "auth": auth}}}


def with_kafka(**kafka: object) -> dict[str, object]:
    return {**GOOD, "kafka": {**GOOD["kafka"], **kafka}}


# --- The file -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "mistake"),
    [
        (b"\xff\xfe", "is not UTF-8 text"),
        ("kafka: [", "line 1, column 9: not YAML: "),
        ("kafka:\n\tgroup: x\n", "line 2, column 1: not YAML: found character '\\t'"),
        ("kafka: {group: a, group: b}", "line 1, column 19: not YAML: 'group' stands twice"),
        ("streams:\n  tech: {}\n  news: {}\n  tech: {}\n", "line 4, column 3: not YAML: 'tech' stands twice"),
        ("a: 1\n--- \nb: 2\n", "not YAML: "),
        ("kafka: !!python/object/apply:os.system ['true']", "not YAML: an alias, tag or value"),
        ("- kafka", "expected settings by name at the top, like kafka:"),
        ("kafka", "expected settings by name at the top, like kafka:"),
        ("1: 2", "expected settings by name at the top, like kafka:"),
    ],
)
def test_a_file_that_is_no_configuration_is_named_with_the_place(config, content, mistake):
    path = config(content)
    (line,) = told(path)
    assert line.startswith(f"{path}:")
    assert mistake in line


def test_a_directory_is_no_configuration(tmp_path):
    assert told(tmp_path) == [f"{tmp_path}: cannot be read: Is a directory"]


@pytest.mark.parametrize("content", ["", "# nothing yet\n", "---\n"])
def test_an_empty_file_leaves_everything_to_the_environment(config, monkeypatch, content):
    path = config(content)
    assert told(path) == ["kafka: is missing", "streams: is missing"]
    assert told(None) == told(path)
    monkeypatch.setenv("CONNECTOR_KAFKA__BOOTSTRAP_SERVERS", "a:1")
    monkeypatch.setenv("CONNECTOR_STREAMS__TECH__URL", STREAM["url"])
    assert load(path) == load(None)


# --- The environment ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "mistake"),
    [
        ("CONNECTOR_KAFAK__X", "CONNECTOR_KAFAK__X: no such setting; did you mean CONNECTOR_KAFKA?"),
        ("CONNECTOR_STREAM", "CONNECTOR_STREAM: no such setting; did you mean CONNECTOR_STREAMS?"),
        ("connector_kafak__x", "connector_kafak__x: no such setting; did you mean CONNECTOR_KAFKA?"),
        ("CONNECTOR_PORT", "CONNECTOR_PORT: no such setting"),
        ("CONNECTOR_KAFKA__BOOTSTRAP_SERVER", "kafka.bootstrap_server: no such setting; did you mean boot"),
        ("CONNECTOR_STREAMS__TECH__DEBOUNCE__MAXS", "streams.tech.debounce.maxs: no such setting; did you"),
        ("CONNECTOR_OPS__PORT", "ops.port: input should be a valid integer"),
        ("CONNECTOR_KAFKA", 'environment: error parsing value for field "kafka"'),
    ],
)
def test_a_variable_that_cannot_work_is_named_and_its_value_is_not(config, monkeypatch, variable, mistake):
    monkeypatch.setenv(variable, SECRET)
    (line,) = told(config(GOOD))
    assert line.startswith(mistake)


def test_the_environment_wins_key_by_key(config, monkeypatch):
    monkeypatch.setenv("CONNECTOR_KAFKA__GROUP", "other")
    monkeypatch.setenv("CONNECTOR_STREAMS__TECH__DEBOUNCE__MAX_S", "300")
    monkeypatch.setenv("CONNECTOR_STREAMS__NEWS__URL", "http://127.0.0.1:2/")
    settings = load(config(with_kafka(group="mine")))
    assert (settings.kafka.group, settings.kafka.bootstrap_servers) == ("other", "127.0.0.1:9092")
    assert settings.streams.keys() == {"tech", "news"}
    assert str(settings.streams["tech"].url) == STREAM["url"]
    assert settings.streams["tech"].debounce.max_s == 300


def test_variables_of_others_are_left_alone(config, monkeypatch):
    monkeypatch.setenv("CONNECTORS", "x")
    monkeypatch.setenv("KAFKA__GROUP", "x")
    assert load(config(GOOD)).kafka.group == "connector"


def test_mistakes_of_the_file_and_of_the_environment_are_told_together(config, monkeypatch):
    monkeypatch.setenv("CONNECTOR_KAFAK__X", "1")
    monkeypatch.setenv("CONNECTOR_OPS__PORT", "many")
    lines = told(config({"kafka": {"group": "a b"}, "streams": {"a/b": STREAM, "c": {}}, "topics": {}}))
    assert sorted(line.partition(":")[0] for line in lines) == [
        "CONNECTOR_KAFAK__X", "kafka.bootstrap_servers", "kafka.group", "ops.port", "streams.a/b",
        "streams.c.url", "topics",
    ]  # fmt: skip


def test_a_misspelt_variable_is_told_even_when_the_file_is_no_yaml(config, monkeypatch):
    monkeypatch.setenv("CONNECTOR_KAFAK__X", "1")
    lines = told(config("kafka: ["))
    assert len(lines) == 2
    assert lines[0].startswith("CONNECTOR_KAFAK__X: no such setting")
    assert "not YAML" in lines[1]


# --- Secrets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (with_auth(kind="bearer", token=[SECRET]), "streams.tech.auth.token"),
        (with_auth(kind="bearer", token=SECRET, token_file="/dev/null"), "streams.tech.auth.token_file"),
        (with_auth(kind="bearer", tokn=SECRET), "streams.tech.auth.tokn"),
        (with_auth(kind="basic", password=SECRET), "streams.tech.auth.username"),
        (with_auth(kind="none", token=SECRET), "streams.tech.auth.token"),
        (with_auth(token=SECRET), "streams.tech.auth"),
        ({**GOOD, "streams": {"tech": {**STREAM, "auth": SECRET}}}, "streams.tech.auth"),
        (with_kafka(password={"is": SECRET}), "kafka.password"),
        (with_kafka(password=SECRET, password_file="/nowhere"), "kafka.password_file"),
        (with_kafka(pasword=SECRET), "kafka.pasword"),
        (with_kafka(client={"sasl.password": SECRET}), "kafka.client"),
        (with_kafka(client={"sasl.jaas.config": SECRET}), "kafka.client"),
        (
            with_kafka(password=SECRET, client={"security.protocol": "sasl_ssl", "sasl.mechanism": "SMOKE"}),
            "kafka.client",
        ),
    ],
)
def test_no_mistake_beside_a_secret_tells_the_secret(config, content, place):
    """`told` looks for it."""
    assert any(line.startswith(f"{place}: ") for line in told(config(content)))


@pytest.mark.parametrize(
    ("auth", "mistake"),
    [
        ({"kind": "bearer"}, "give exactly one of token and token_file"),
        ({"kind": "bearer", "token": ""}, "token is empty"),
        ({"kind": "basic", "username": "u"}, "give exactly one of password and password_file"),
        ({"kind": "basic", "username": "u", "password": ""}, "password is empty"),
    ],
)
def test_a_login_without_a_secret_is_none(config, auth, mistake):
    assert told(config(with_auth(**auth))) == [f"streams.tech.auth: {mistake}"]


def test_both_a_secret_and_its_file_are_one_too_many(config, tmp_path):
    file = tmp_path / "secret"
    file.write_text("x")
    assert told(config(with_auth(kind="bearer", token=SECRET, token_file=str(file)))) == [
        "streams.tech.auth: give exactly one of token and token_file"
    ]
    assert told(config(with_kafka(password=SECRET, password_file=str(file)))) == [
        "kafka: password and password_file exclude each other"
    ]


def test_a_secrets_file_must_be_there_and_hold_something(config, tmp_path):
    file = tmp_path / "secret"
    content = with_auth(kind="bearer", token_file=str(file))
    place = "streams.tech.auth.token_file"
    assert told(config(content)) == [f"{place}: cannot read {file}: No such file or directory"]
    file.write_text(" \n")
    assert told(config(content)) == [f"{place}: {file} is empty"]
    file.write_bytes(SECRET.encode() + b"\xff")
    (line,) = told(config(content))
    assert line.startswith(f"{place}: cannot read {file}: ")


def test_every_secrets_file_is_read_anew_after_a_rotation(config, tmp_path):
    kafka, basic = tmp_path / "kafka", tmp_path / "basic"
    for file in (kafka, basic):
        file.write_text("first\n")
    settings = load(
        config(
            {
                **with_kafka(password_file=str(kafka)),
                **with_auth(kind="basic", username="u", password_file=str(basic)),
                "kafka": {**GOOD["kafka"], "password_file": str(kafka)},
            }
        )
    )
    auth = settings.streams["tech"].auth
    before = authorization(auth)
    assert before == authorization(BasicAuth(kind="basic", username="u", password="first"))
    assert settings.kafka.properties("r")["sasl.password"] == "first"
    for file in (kafka, basic):
        file.write_text("second")
    assert authorization(auth) == authorization(BasicAuth(kind="basic", username="u", password="second"))
    assert settings.kafka.properties("r")["sasl.password"] == "second"


def test_a_secret_shows_in_no_representation_wherever_it_came_from(config, monkeypatch, tmp_path):
    file = tmp_path / "secret"
    file.write_text(SECRET)
    monkeypatch.setenv("CONNECTOR_KAFKA__PASSWORD", SECRET)
    monkeypatch.setenv("CONNECTOR_STREAMS__TECH__AUTH__KIND", "bearer")
    monkeypatch.setenv("CONNECTOR_STREAMS__TECH__AUTH__TOKEN_FILE", str(file))
    settings = load(config(GOOD))
    for shown in (repr(settings), str(settings), settings.model_dump_json(), repr(settings.model_dump())):
        assert SECRET not in shown
    assert authorization(settings.streams["tech"].auth) == f"Bearer {SECRET}"


# --- Kafka's own properties ---------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(_OWNED))
def test_what_the_guarantee_depends_on_cannot_be_changed(config, name):
    assert told(config(with_kafka(client={name: "x"}))) == [
        f"kafka.client: the connector sets these itself: {name}"
    ]


def test_the_guarantee_depends_on_these():
    assert {
        "bootstrap.servers", "group.id", "transactional.id", "enable.auto.commit", "isolation.level",
        "enable.idempotence", "auto.offset.reset", "partition.assignment.strategy", "sasl.password",
    } <= _OWNED  # fmt: skip


@pytest.mark.parametrize(
    "client",
    [
        {"security.protocol": "smoke"},
        {"linger.ms": "soon"},
        {"linger.ms": -5},
        {"lingre.ms": 5},
        {"": "x"},
    ],
)
def test_what_librdkafka_does_not_know_is_told_in_its_words(config, client):
    (line,) = told(config(with_kafka(client=client)))
    assert line.startswith("kafka.client: ")
    assert "onfiguration property" in line


@pytest.mark.parametrize(
    "client",
    [{"linger.ms": 20_000}, {"delivery.timeout.ms": 600_000}, {"max.in.flight": 10}, {"retries": 0}],
)
def test_what_a_transactional_producer_does_not_bear_is_told(config, client):
    (line,) = told(config(with_kafka(client=client)))
    assert line.startswith("kafka.client: Failed to create producer: `")
    assert " must be " in line


def test_further_properties_reach_librdkafka(config):
    client = {"security.protocol": "PLAINTEXT", "linger.ms": 5, "socket.keepalive.enable": True}
    properties = load(config(with_kafka(client=client))).kafka.properties("c-0")
    assert client.items() <= properties.items()
    assert properties["bootstrap.servers"] == "127.0.0.1:9092"
    assert properties["client.id"] == "connector-c-0"
    assert "sasl.password" not in properties


# --- Commands -----------------------------------------------------------------------------------


def test_every_command_that_needs_a_configuration_refuses_a_broken_one(config):
    path = config({**GOOD, "opps": {}})
    for command in ("run", "topics"):
        result = CliRunner().invoke(main, [command, "--config", str(path)])
        assert (result.exit_code, result.output) == (2, "opps: no such setting; did you mean ops?\n")


def test_mistakes_go_to_standard_error(config):
    result = CliRunner().invoke(main, ["run", "--config", str(config({}))])
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 2


def test_an_error_of_the_configuration_keeps_its_mistakes_apart(config):
    with pytest.raises(ConfigurationError, match="kafka: is missing; streams: is missing") as raised:
        load(config({}))
    assert raised.value.mistakes == ["kafka: is missing", "streams: is missing"]


def test_settings_cannot_be_changed_later(config):
    settings = load(config(GOOD))
    assert isinstance(settings, Settings)
    with pytest.raises(ValueError, match="frozen"):
        settings.kafka.group = "other"


@pytest.mark.parametrize("secret", [f"*{SECRET}", f"!{SECRET} x"])
def test_yaml_that_cannot_be_read_is_not_quoted(config, secret):
    """What stands where a secret should is one, mostly."""
    told(config(f"kafka: {{bootstrap_servers: 'a:1', password: {secret}}}"))
