"""Wrong configurations end with exit code 2 and every mistake named at its place, offline."""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import parse_qs

import pytest
import trustme
import yaml
from harness import authorization
from typer.testing import CliRunner

from connector import sharing
from connector.auth import BasicAuth, BearerAuth
from connector.cli import main
from connector.errors import ConfigurationError
from connector.model import PredicateSet
from connector.settings import StreamSettings, load
from connector.stream import dialect
from connector.stream.call import call
from connector.stream.transport import Tls

ROOT = Path(__file__).parent.parent.parent
SECRET = "hunter2-and-more"
GOOD = {
    "kafka": {"bootstrap_servers": "127.0.0.1:9092"},
    "streams": {"tech": {"url": "http://127.0.0.1:1/stream"}},
}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own variables configure nothing here."""
    for name in os.environ:
        if name.startswith("CONNECTOR_"):
            monkeypatch.delenv(name)


@pytest.fixture
def config(tmp_path: Path):
    """Return a writer of configuration files: a dict, or text as it is."""

    def write(content: object) -> Path:
        path = tmp_path / "connector.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write


def with_stream(**settings: object) -> dict[str, object]:
    return {**GOOD, "streams": {"tech": {**GOOD["streams"]["tech"], **settings}}}


BROKEN = {
    "nothing at all": ({}, ["kafka: is missing", "streams: is missing"]),
    "no streams": ({**GOOD, "streams": {}}, ["streams: "]),
    "misspelt settings": (
        {"kafka": {"bootstrap_server": "a:1"}, "streams": {"tech": {"uri": "http://a/"}}, "opps": {}},
        [
            "kafka.bootstrap_servers: is missing",
            "kafka.bootstrap_server: no such setting; did you mean bootstrap_servers?",
            "streams.tech.url: is missing",
            "streams.tech.uri: no such setting; did you mean url?",
            "opps: no such setting; did you mean ops?",
        ],
    ),
    "addresses": (
        {"kafka": {"bootstrap_servers": "localhost"}, "streams": {"tech": {"url": "stream.example.com"}}},
        ["kafka.bootstrap_servers: expected host:port", "streams.tech.url: input should be a valid URL"],
    ),
    "a secret in an address": (
        with_stream(url=f"http://demo:{SECRET}@127.0.0.1/"),
        ["streams.tech.url: holds credentials, which belong under auth"],
    ),
    "a dialect nobody knows": (with_stream(dialect="gopher"), ["streams.tech.dialect: no such dialect"]),
    "overrides that do not fit": (
        with_stream(override={"framing": {"kind": "smoke"}, "liveness": {"stall_timeout_s": 0}, "wings": 2}),
        [
            "streams.tech.override.framing.kind: input should be 'length', 'lines', 'sse' or 'json'",
            "streams.tech.override.liveness.stall_timeout_s: input should be greater than 0",
            "streams.tech.override.wings: no such setting",
        ],
    ),
    "no secret": (
        with_stream(auth={"kind": "bearer"}),
        ["streams.tech.auth: give exactly one of token and token_file"],
    ),
    "two secrets, one unreadable": (
        with_stream(auth={"kind": "basic", "username": "u", "password": SECRET, "password_file": "/nowhere"}),
        ["streams.tech.auth.password_file: cannot read /nowhere: No such file or directory"],
    ),
    "librdkafka properties": (
        {**GOOD, "kafka": {"bootstrap_servers": "a:1", "client": {"sasl.mechanizm": "PLAIN"}}},
        ['kafka.client: No such configuration property: "sasl.mechanizm"'],
    ),
    "properties that are ours": (
        {**GOOD, "kafka": {"bootstrap_servers": "a:1", "client": {"isolation.level": "read_uncommitted"}}},
        ["kafka.client: the connector sets these itself: isolation.level"],
    ),
    "numbers": (
        {**with_stream(debounce={"min_s": 9, "max_s": 1}), "ops": {"port": "many"}},
        ["streams.tech.debounce: min_s (9) is above max_s (1)", "ops.port: input should be a valid integer"],
    ),
    "a stream's name": (
        {**GOOD, "streams": {"tech/a": GOOD["streams"]["tech"]}},
        ["streams.tech/a: 'tech/a' may hold only letters, digits, dots, dashes and underscores"],
    ),
    "topics of one name": (
        {**GOOD, "kafka": {"bootstrap_servers": "a:1", "topics": {"statuses": "x", "events": "x"}}},
        ["kafka.topics: each of the five topics needs a name of its own"],
    ),
    "a key twice": ("kafka: {}\nkafka: {}\n", ["line 2, column 1: not YAML: 'kafka' stands twice"]),
    "no YAML": ("kafka: [", ["not YAML"]),
    "a list": ("- kafka\n", ["expected settings by name at the top"]),
}


@pytest.mark.parametrize(("content", "mistakes"), BROKEN.values(), ids=BROKEN)
def test_a_broken_configuration_ends_with_2_and_names_every_mistake(config, content, mistakes) -> None:
    """Also no line more than there are mistakes, and no secret among them."""
    result = CliRunner().invoke(main, ["run", "--config", str(config(content))])
    assert result.exit_code == 2
    told = result.output.splitlines()
    for mistake in mistakes:
        assert any(mistake in line for line in told), f"{mistake!r} is not among {told}"
    assert len(told) == len(mistakes)
    assert SECRET not in result.output


def test_a_file_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["run", "--config", str(tmp_path / "nowhere.yaml")])
    assert result.exit_code == 2
    assert "nowhere.yaml: cannot be read: No such file or directory" in result.output


def test_misspelt_variables_are_mistakes_too(config, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the top, where pydantic-settings ignores them, and below."""
    monkeypatch.setenv("CONNECTOR_KAFAK__GROUP", "x")
    monkeypatch.setenv("CONNECTOR_KAFKA__GRUOP", "x")
    monkeypatch.setenv("CONNECTOR_OPS__PORT", "99999")
    with pytest.raises(ConfigurationError) as raised:
        load(config(GOOD))
    assert sorted(raised.value.mistakes) == [
        "CONNECTOR_KAFAK__GROUP: no such setting; did you mean CONNECTOR_KAFKA?",
        "kafka.gruop: no such setting; did you mean group?",
        "ops.port: input should be less than or equal to 65535",
    ]


def test_the_environment_wins_over_the_file_and_suffices_alone(
    config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONNECTOR_KAFKA__BOOTSTRAP_SERVERS", "other:1")
    assert load(config(GOOD)).kafka.bootstrap_servers == "other:1"
    monkeypatch.setenv("CONNECTOR_STREAMS__TECH__URL", "http://127.0.0.1:2/")
    monkeypatch.setenv("CONNECTOR_STREAMS__TECH__DEBOUNCE__MIN_S", "7")
    alone = load(None)
    assert str(alone.streams["tech"].url) == "http://127.0.0.1:2/"
    assert alone.streams["tech"].debounce.min_s == 7


def test_a_secrets_file_is_read_anew_at_every_use(tmp_path: Path) -> None:
    """So a rotated secret needs no restart."""
    file = tmp_path / "token"
    file.write_text("first\n")
    auth = BearerAuth(kind="bearer", token_file=file)
    assert authorization(auth) == "Bearer first"
    file.write_text("second\n")
    assert authorization(auth) == "Bearer second"


def test_a_secret_with_a_line_break_never_becomes_a_header() -> None:
    """It would be one header more than meant."""
    with pytest.raises(ValueError, match="control characters"):
        authorization(BearerAuth(kind="bearer", token="a\r\nx-admin: 1"))


def test_basic_credentials_are_encoded_as_rfc_7617_says() -> None:
    auth = BasicAuth(kind="basic", username="Aladdin", password="open sesame")
    assert authorization(auth) == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="


def test_secrets_show_in_no_representation(config) -> None:
    settings = load(
        config(
            {
                **with_stream(auth={"kind": "bearer", "token": SECRET}),
                "kafka": {"bootstrap_servers": "a:1", "password": SECRET},
            }
        )
    )
    assert SECRET not in repr(settings)
    assert SECRET not in str(settings.model_dump())
    assert settings.kafka.properties("r")["sasl.password"] == SECRET


@pytest.mark.parametrize("path", ["deploy/connector.yaml", "deploy/kubernetes/connector.yaml"])
def test_the_configurations_we_ship_are_good(path: str, config, tmp_path: Path) -> None:
    """With the secrets' files where the platform mounts them."""
    text = (ROOT / path).read_text()
    for name in ("kafka-password", "upstream-token"):
        (tmp_path / name).write_text("x")
    settings = load(config(text.replace("/run/secrets/connector", str(tmp_path))))
    assert settings.streams["tech"].manners.resume is None


def test_the_readme_shows_a_configuration_that_works(config, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    block = readme.split("```yaml\n")[1].split("```")[0]
    assert len(block.splitlines()) <= 15
    for name in ("kafka-password", "upstream-token"):
        (tmp_path / name).write_text("x")
    load(config(block.replace("/run/secrets", str(tmp_path))))


def test_a_cursor_cannot_lie_within_an_id(config) -> None:
    with pytest.raises(ConfigurationError, match="one cannot lie within the other"):
        load(config(with_stream(override={"resume": {"parameter": "since", "cursor": "/id_str/x"}})))


def test_a_secret_among_librdkafkas_properties_shows_in_no_representation(config) -> None:
    content = {**GOOD, "kafka": {"bootstrap_servers": "a:1", "client": {"ssl.key.password": SECRET}}}
    assert SECRET not in repr(load(config(content)))


def test_settings_that_would_steer_the_loader_are_mistakes(config) -> None:
    with pytest.raises(ConfigurationError, match="_env_file: no such setting"):
        load(config({**GOOD, "_env_file": "elsewhere"}))


def test_yaml_may_merge(config) -> None:
    text = "kafka: {bootstrap_servers: 'k:9092'}\nstreams: {a: &a {url: 'http://u/'}, b: {<<: *a}}\n"
    assert load(config(text)).streams.keys() == {"a", "b"}


@pytest.mark.parametrize("name", [".", ".."])
def test_topics_kafka_would_refuse_are_mistakes(config, name: str) -> None:
    with pytest.raises(ConfigurationError, match="may hold only"):
        load(config({**GOOD, "kafka": {"bootstrap_servers": "a:1", "topics": {"dlq": name}}}))


# Dialects


def test_the_dialects_are_listed_and_shown():
    listed = CliRunner().invoke(main, ["dialects"])
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == dialect.names()
    for name in dialect.names():
        shown = CliRunner().invoke(main, ["dialects", "show", name])
        assert (shown.exit_code, shown.stdout) == (0, dialect.text(name))


def test_a_dialect_that_is_not_there_cannot_be_shown():
    shown = CliRunner().invoke(main, ["dialects", "show", "gopher"])
    assert shown.exit_code == 2
    assert "there are: ndjson, sse, twitter-v1" in shown.stderr


def test_a_users_own_file_is_a_dialect(config, tmp_path):
    own = tmp_path / "mine.toml"
    own.write_text(dialect.text("ndjson").replace('id = "/id"', 'id = "/key"'))
    settings = load(config(with_stream(dialect=str(own), override={"liveness": {"stall_timeout_s": 7}})))
    manners = settings.streams["tech"].manners
    assert (manners.messages.id, manners.liveness.stall_timeout_s) == ("/key", 7)
    own.unlink()
    assert settings.streams["tech"].manners is manners, "as it was at the start"


@pytest.mark.parametrize(
    ("content", "mistake"),
    [
        (None, "streams.tech.dialect: cannot read {file}: No such file or directory"),
        ("[request\n", "streams.tech.dialect: {file} is no TOML: "),
        ("[wings]\n", "streams.tech.override.wings: no such setting"),
        ("", "streams.tech.override.framing: is missing"),
    ],
)
def test_mistakes_in_a_users_own_file_are_named(config, tmp_path, content, mistake):
    own = tmp_path / "mine.toml"
    if content is not None:
        own.write_text(content)
    with pytest.raises(ConfigurationError) as error:
        load(config(with_stream(dialect=str(own))))
    assert any(one.startswith(mistake.format(file=own)) for one in error.value.mistakes), error.value.mistakes


def test_streams_of_the_same_manners_share_them_and_no_others_do(config, tmp_path):
    own = tmp_path / "own.toml"
    own.write_text(dialect.text("ndjson"))
    manners: list[dict[str, object]] = [
        {"dialect": "ndjson"},
        {"dialect": "ndjson", "override": {}},
        {"dialect": "ndjson", "override": {"liveness": {"stall_timeout_s": 7}}},
        {"dialect": "sse"},
        {"dialect": str(own)},
    ]
    streams = {f"stream-{at}": {"url": "http://a/", **one} for at, one in enumerate(manners)}
    loaded = load(config({**GOOD, "streams": streams})).streams.values()
    first, same, stalls, sse, copy = (one.manners for one in loaded)
    assert first is same is copy
    assert stalls.liveness.stall_timeout_s == 7 != first.liveness.stall_timeout_s
    assert (first.framing.kind, sse.framing.kind) == ("lines", "sse")
    own.write_text(dialect.text("sse"))
    (changed,) = load(config(with_stream(dialect=str(own)))).streams.values()
    assert changed.manners is sse


# Shares

SHARED = {"partitions": 2, "override": {"request": {"partition": {"parameter": "part", "first": 0}}}}


def asked(stream: StreamSettings) -> dict[str, list[str]]:
    """Return the form that a stream's connections send."""
    return parse_qs(call(stream.manners, PredicateSet.of({"track": ["a"]}), None).body.decode())


def test_shares_ask_for_their_numbers_and_are_else_as_their_stream(config):
    its = load(config(with_stream(**SHARED))).streams
    assert sharing.shared(its) == {"tech": 2}
    runs = sharing.running(its)
    assert list(runs) == ["tech.1-of-2", "tech.2-of-2"]
    bodies = [asked(one) for one in runs.values()]
    assert [one.pop("part") for one in bodies] == [["0"], ["1"]]
    plain = load(config(GOOD)).streams["tech"]
    assert bodies == 2 * [asked(plain)]
    assert {one.url for one in runs.values()} == {plain.url}


def test_an_upstream_may_count_from_1_and_be_told_how_many_shares_there_are(config):
    partition = {"parameter": "part", "first": 1, "count_parameter": "parts"}
    shared = {**SHARED, "override": {"request": {"partition": partition}}}
    runs = sharing.running(load(config(with_stream(**shared))).streams)
    told = [one.manners.request.parameters for one in runs.values()]
    assert [(one["part"], one["parts"]) for one in told] == [("1", "2"), ("2", "2")]


def test_a_stream_without_partitions_runs_as_it_is(config):
    its = load(config(with_stream(override=SHARED["override"]))).streams
    assert sharing.running(its) == its
    assert sharing.shared(its) == {}


@pytest.mark.parametrize(
    ("partition", "mistake"),
    [
        ({"parameter": "track", "first": 0}, "'track' is a parameter already"),
        ({"parameter": "delimited", "first": 0}, "'delimited' is a parameter already"),
        ({"parameter": "part", "first": 0, "count_parameter": "track"}, "'track' is a parameter already"),
        ({"parameter": "part", "first": 0, "count_parameter": "part"}, "are the same"),
        ({"parameter": "part", "first": 2}, "partition.first"),
        ({"first": 0}, "partition.parameter: is missing"),
    ],
)
def test_a_partition_parameter_is_nothing_else(config, partition, mistake):
    with pytest.raises(ConfigurationError) as error:
        load(config(with_stream(override={"request": {"partition": partition}})))
    assert any(mistake in one for one in error.value.mistakes), error.value.mistakes


def test_what_resumes_is_no_partition_parameter(config):
    override = {**SHARED["override"], "resume": {"parameter": "part", "cursor": "/seq"}}
    with pytest.raises(ConfigurationError, match="'part' is a parameter already"):
        load(config(with_stream(override=override)))


def test_an_upstream_that_keeps_rules_has_no_shares(config):
    with pytest.raises(ConfigurationError, match="cannot share what an upstream keeps as rules"):
        load(config(with_stream(dialect="x-v2", override=SHARED["override"])))


@pytest.mark.parametrize(
    ("partitions", "mistake"),
    [(2, "the dialect has no request.partition"), (0, "greater than or equal to 1"), (100, "99")],
)
def test_shares_without_a_way_to_ask_for_them_are_a_mistake(config, partitions, mistake):
    with pytest.raises(ConfigurationError) as error:
        load(config(with_stream(partitions=partitions)))
    (told,) = error.value.mistakes
    assert told.startswith("streams.tech")
    assert mistake in told


def test_no_stream_has_a_shares_name(config):
    content = with_stream(**SHARED)
    content["streams"]["tech.2-of-2"] = GOOD["streams"]["tech"]
    with pytest.raises(ConfigurationError, match=r"'tech.2-of-2' is the name of a share of 'tech'"):
        load(config(content))


# TLS, proxy and the other ways to prove who asks


def test_certificates_are_tried_before_the_start(config, tmp_path):
    rubbish = tmp_path / "ca.pem"
    rubbish.write_text("rubbish")
    https = {"url": "https://127.0.0.1:1/stream"}
    for tls, mistake in (
        ({"ca_file": str(rubbish)}, "the certificates cannot be used"),
        ({"ca_file": str(tmp_path / "gone")}, "ca_file: there is no file"),
        ({"key_file": str(rubbish)}, "key_file needs a certificate_file"),
    ):
        with pytest.raises(ConfigurationError, match=mistake):
            load(config(with_stream(**https, tls=tls)))


def test_certificates_that_nobody_names_are_not_tried_for_every_stream(config, monkeypatch):
    tried: list[Tls] = []
    monkeypatch.setattr(Tls, "context", tried.append)
    streams = {f"stream-{number}": {"url": f"http://a/{number}"} for number in range(5)}
    assert len(load(config({**GOOD, "streams": streams})).streams) == 5
    assert tried == []


def test_tls_for_a_url_without_it_is_a_mistake(config, tmp_path):
    ca = tmp_path / "ca.pem"
    ca.write_bytes(trustme.CA().cert_pem.bytes())
    assert load(config(with_stream(url="https://a/", tls={"ca_file": str(ca)})))
    with pytest.raises(ConfigurationError, match="tls: the url is not https"):
        load(config(with_stream(tls={"ca_file": str(ca)})))


@pytest.mark.parametrize(
    ("auth", "mistake"),
    [
        ({"kind": "api_key"}, "give exactly one of key and key_file"),
        ({"kind": "api_key", "key": "k", "header": "Host"}, "the connector sets Host itself"),
        (
            {"kind": "oauth1", "consumer_key": "a", "consumer_secret": "b", "token": "c"},
            "exactly one of token_secret",
        ),
        ({"kind": "oauth2", "client_id": "me", "client_secret": "s"}, "token_url: is missing"),
        ({"kind": "password"}, "auth"),
    ],
)
def test_mistakes_in_credentials_are_named(config, auth, mistake):
    with pytest.raises(ConfigurationError, match=mistake):
        load(config(with_stream(auth=auth)))


def test_each_kind_of_credentials_can_be_configured(config):
    for auth in (
        {"kind": "none"},
        {"kind": "api_key", "key": SECRET},
        {"kind": "oauth1", "consumer_key": "a", "consumer_secret": SECRET, "token": "c", "token_secret": "d"},
        {"kind": "oauth2", "token_url": "https://id/token", "client_id": "me", "client_secret": SECRET},
    ):
        settings = load(config(with_stream(auth=auth)))
        assert SECRET not in repr(settings)
        assert SECRET not in repr(settings.streams["tech"].auth.credentials())


@pytest.mark.parametrize("user", ["do%3Amain:pw", "us%E2%82%ACr:pw", "user:p%E2%82%AC"])
def test_a_proxys_user_is_one_that_can_be_sent(config, user):
    with pytest.raises(ConfigurationError, match=r"tech\.proxy"):
        load(config(with_stream(proxy=f"http://{user}@proxy:3128")))


def test_a_proxys_password_is_not_shown(config):
    settings = load(config(with_stream(proxy=f"http://user:{SECRET}@proxy:3128")))
    assert SECRET not in repr(settings)


# Predicates from the command line: what is wrong is said before anything is published


@pytest.mark.parametrize(
    ("arguments", "mistake"),
    [
        (["put", "tech", "trak=kafka"], "/trak: unknown_predicate: known are: follow, locations, track"),
        (["put", "tech", "track=kafka", "follow=bob"], "/follow/0: no_match"),
        (["put", "tech", "kafka"], "'kafka': expected NAME=VALUE"),
        (["put", "tech", "track=\udcff"], "expected NAME=VALUE in UTF-8"),
        (["put", "tech", "track=a", "--as", "\udcff"], "expected UTF-8"),
        (["put", "tech", "track="], "/track/0: empty_term"),
        (["put", "news", "track=kafka"], "no stream 'news'; there are: tech"),
        (["remove", "news"], "no stream 'news'"),
        (["get", "news"], "no stream 'news'"),
        (["schema", "news"], "no stream 'news'"),
    ],
)
def test_mistakes_of_a_publisher_are_named(config, arguments, mistake):
    said = CliRunner().invoke(main, ["predicates", *arguments, "--config", str(config(GOOD))])
    assert said.exit_code == 2
    assert mistake in said.stderr


def test_the_schema_of_a_stream_is_json(config):
    said = CliRunner().invoke(main, ["predicates", "schema", "tech", "--config", str(config(GOOD))])
    assert said.exit_code == 0
    assert json.loads(said.stdout)["properties"].keys() == {"follow", "locations", "paused", "track"}
