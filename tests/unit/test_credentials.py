"""Who asks is proven by what the secrets are now, and no secret shows where people look."""

from __future__ import annotations

import ast
import asyncio
import base64
import hashlib
import hmac
import json
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import pytest

from connector.errors import Unreachable
from connector.stream import credentials
from connector.stream.credentials import (
    ApiKey,
    Basic,
    Bearer,
    Credentials,
    NoCredentials,
    OAuth1,
    OAuth2ClientCredentials,
    Outgoing,
    Secret,
)

GET = Outgoing("GET", "https://upstream.example/stream?track=a", None)
NOW = 1_700_000_000.0
SECRET = "s3cr3t-horse"


def always(text: str) -> Secret:
    return lambda: text


def from_file(path: Path) -> Secret:
    return lambda: path.read_text("utf-8").strip()


async def no_fetch(url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
    pytest.fail("fetched a token that it does not need")


async def headers(one: Credentials, outgoing: Outgoing = GET) -> dict[str, str]:
    return await one.headers(outgoing, no_fetch, NOW)


def oauth1(**secrets: Secret) -> OAuth1:
    names = ("consumer_key", "consumer_secret", "token", "token_secret")
    return OAuth1(**{name: always(f"{SECRET}-{name}") for name in names} | secrets)


EVERY_KIND = {
    "bearer": Bearer,
    "basic": lambda secret: Basic("user", secret),
    "api key": lambda secret: ApiKey("x-api-key", secret),
    "oauth1": lambda secret: oauth1(token_secret=secret),
    "oauth2": lambda secret: OAuth2ClientCredentials("https://tokens.example/", "me", secret),
}
every_kind = pytest.mark.parametrize("make", EVERY_KIND.values(), ids=EVERY_KIND)

# --- Headers ------------------------------------------------------------------------------------


async def test_no_credentials_are_no_headers():
    assert await headers(NoCredentials()) == {}


async def test_a_bearer_token_is_sent():
    assert await headers(Bearer(always("abc"))) == {"authorization": "Bearer abc"}


async def test_a_user_and_a_password_are_sent_as_utf_8():
    sent = await headers(Basic("Jürgen", always("pass:wörd")))
    assert sent == {"authorization": "Basic " + base64.b64encode("Jürgen:pass:wörd".encode()).decode()}


async def test_a_key_is_sent_in_its_own_header():
    assert await headers(ApiKey("X-Api-Key", always("abc def"))) == {"X-Api-Key": "abc def"}


@every_kind
async def test_a_rotated_secret_is_used_and_changes_the_fingerprint(make, tmp_path):
    file = tmp_path / "secret"
    file.write_text("first")
    one = make(from_file(file))
    endpoint = Endpoint()
    marks = [one.fingerprint(), one.fingerprint()]
    sent = [await one.headers(GET, endpoint, NOW)]
    file.write_text("second")
    marks.append(one.fingerprint())
    sent.append(await one.headers(GET, endpoint, NOW))
    assert sent[0] != sent[1]
    assert marks[0] == marks[1] != marks[2]
    file.write_text("first")
    assert one.fingerprint() == marks[0]


@every_kind
async def test_an_unreadable_secret_raises_but_its_fingerprint_does_not(make, tmp_path):
    file = tmp_path / "secret"
    one = make(from_file(file))
    gone = one.fingerprint()
    with pytest.raises(OSError, match="No such file"):
        await one.headers(GET, no_fetch, NOW)
    file.write_bytes(b"\xff")
    assert one.fingerprint() == gone
    with pytest.raises(ValueError, match="decode"):
        await one.headers(GET, no_fetch, NOW)
    file.write_text("there again")
    assert one.fingerprint() != gone


@pytest.mark.parametrize("name", ["consumer_key", "consumer_secret", "token", "token_secret"])
def test_each_secret_of_a_signature_counts(name):
    assert oauth1().fingerprint() == oauth1().fingerprint() != oauth1(**{name: always("new")}).fingerprint()


@every_kind
async def test_an_emptied_secret_is_not_sent(make):
    with pytest.raises(ValueError, match="is empty"):
        await make(always("")).headers(GET, no_fetch, NOW)


@every_kind
@pytest.mark.parametrize("bad", ["\n", "\r\nx-evil: 1", "\0", "\x7f", "\udcff"])
async def test_characters_that_cannot_be_printed_are_not_sent(make, bad):
    with pytest.raises(ValueError, match="holds characters that cannot be printed") as raised:
        await make(always(SECRET + bad)).headers(GET, no_fetch, NOW)
    assert not shows(raised.value, SECRET)


@pytest.mark.parametrize("make", [EVERY_KIND["bearer"], EVERY_KIND["api key"]])
async def test_what_no_header_can_hold_is_not_quoted(make):
    with pytest.raises(ValueError, match="holds characters that no header can") as raised:
        await headers(make(always(SECRET + "ü")))
    assert not shows(raised.value, SECRET)


async def test_a_username_that_cannot_be_encoded_does_not_show_the_password():
    with pytest.raises(ValueError, match="the username holds") as raised:
        await headers(Basic("\udcff", always(SECRET)))
    assert not shows(raised.value, SECRET)


@every_kind
async def test_no_repr_shows_a_secret(make):
    one = make(always(SECRET))
    await one.headers(GET, Endpoint(token=SECRET + "-token"), NOW)
    assert SECRET not in repr(one)
    assert SECRET not in repr(getattr(one, "_token", None))
    assert SECRET not in repr(one.fingerprint())


@every_kind
async def test_a_refusal_of_a_fixed_secret_changes_nothing(make):
    one = make(always(SECRET))
    before = one.fingerprint()
    one.rejected()
    assert one.fingerprint() == before
    assert NoCredentials().fingerprint() == NoCredentials().fingerprint()


def shows(error: BaseException | None, secret: str) -> bool:
    """Return whether the error, or any that led to it, holds the secret."""
    while error is not None:
        if secret in str(error) or secret in repr(error) or secret in repr(vars(error)):
            return True
        if isinstance(error, UnicodeError) and secret in str(error.object):
            return True
        error = error.__cause__ or error.__context__
    return False


# --- OAuth 1.0a ---------------------------------------------------------------------------------

TWITTER = OAuth1(
    always("xvz1evFS4wEEPTGEFPHBog"),
    always("kAcSOqF21Fu85e7zjz7ZN2U4ZRhfV3WpwPAoE3Z7kBw"),
    always("370773112-GmHxMAgYyLbNEtIKZeRNFsMKPR9EyMZeS9weJAEb"),
    always("LswwdoUaIvS8ltyTt5jkRh4J50vUPVVHtR2YPi5kE"),
)
"""The credentials of Twitter's page "Creating a signature"."""

FORM = "status=Hello%20Ladies%20%2B%20Gentlemen%2C%20a%20signed%20OAuth%20request%21"
TIMESTAMP = 1318622958


def signature(one: OAuth1, outgoing: Outgoing, nonce: str, timestamp: str) -> str:
    """Sign as RFC 5849, section 3.4, says, with nothing of oauthlib's."""
    address = urlsplit(outgoing.url)
    pairs = parse_qsl(address.query, True) + parse_qsl(outgoing.form or "", True)
    pairs += [
        ("oauth_consumer_key", one.consumer_key()),
        ("oauth_nonce", nonce),
        ("oauth_signature_method", "HMAC-SHA1"),
        ("oauth_timestamp", timestamp),
        ("oauth_token", one.token()),
        ("oauth_version", "1.0"),
    ]
    encoded = sorted((quote(name, safe="~"), quote(value, safe="~")) for name, value in pairs)
    parameters = "&".join(f"{name}={value}" for name, value in encoded)
    base = (outgoing.method, f"{address.scheme}://{address.netloc}{address.path}", parameters)
    key = f"{quote(one.consumer_secret(), safe='~')}&{quote(one.token_secret(), safe='~')}"
    text = "&".join(quote(part, safe="~") for part in base)
    return base64.b64encode(hmac.digest(key.encode(), text.encode(), hashlib.sha1)).decode()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://api.twitter.com/1.1/statuses/update.json", "hCtSmYh+iHYCEqBWrE7C7hYmtUk="),
        ("https://api.twitter.com/1/statuses/update.json", "tnnArxj06cWHq44gCs1OSKk/jLY="),
    ],
)
def test_the_tests_own_signature_is_the_one_that_twitter_published(url, expected):
    outgoing = Outgoing("POST", f"{url}?include_entities=true", FORM)
    nonce = "kYjzVBB8Y0ZFabxSWbWovY3uYSQ2pTgmZeNu2VS4cg"
    assert signature(TWITTER, outgoing, nonce, str(TIMESTAMP)) == expected


def parameters(authorization: str) -> dict[str, str]:
    assert authorization.startswith("OAuth ")
    pairs = (one.split("=", 1) for one in authorization.removeprefix("OAuth ").split(", "))
    return {name: unquote(value.strip('"')) for name, value in pairs}


@pytest.mark.parametrize(
    "outgoing",
    [
        Outgoing("POST", "https://api.twitter.com/1.1/statuses/update.json?include_entities=true", FORM),
        Outgoing("POST", "https://stream.example:8443/filter?count=1", "track=a+b%2Cc&track=%C3%BC"),
        Outgoing("POST", "https://stream.example/filter", ""),
        Outgoing("POST", "https://stream.example/filter?b=2&a=1&a=%20", None),
        GET,
    ],
)  # fmt: skip
async def test_a_request_is_signed_with_its_query_and_its_form(outgoing):
    for one in (TWITTER, oauth1(token_secret=always("mit & ü"))):
        sent = await one.headers(outgoing, no_fetch, TIMESTAMP + 0.9)
        (authorization,) = sent.values()
        given = parameters(authorization)
        assert given["oauth_timestamp"] == str(TIMESTAMP)
        assert given["oauth_consumer_key"] == one.consumer_key()
        assert given["oauth_token"] == one.token()
        assert given["oauth_signature_method"] == "HMAC-SHA1"
        nonce, timestamp = given["oauth_nonce"], given["oauth_timestamp"]
        assert given["oauth_signature"] == signature(one, outgoing, nonce, timestamp)
        assert authorization.isascii()
        assert one.consumer_secret() not in authorization


async def test_each_signature_has_a_nonce_of_its_own():
    nonces = {parameters((await headers(TWITTER))["authorization"])["oauth_nonce"] for _ in range(20)}
    assert len(nonces) == 20


@pytest.mark.parametrize(
    "outgoing",
    [
        Outgoing("POST", "https://stream.example/", "{not a form}"),
        Outgoing("GET", "https://stream.example/", "track=a"),
        Outgoing("POST", 'https://stream.example/?a="', None),
    ],
)
async def test_a_request_that_cannot_be_signed_says_so_without_a_secret(outgoing):
    with pytest.raises(ValueError) as raised:
        await headers(oauth1(), outgoing)
    assert not shows(raised.value, SECRET)


async def test_a_body_that_signing_changed_is_found(monkeypatch):
    monkeypatch.setattr(credentials.Client, "sign", lambda *_, **__: ("", {"Authorization": ""}, "b=1"))
    with pytest.raises(ValueError, match="another body"):
        await headers(oauth1(), Outgoing("POST", "https://stream.example/", "a=1"))


async def test_signing_logs_no_secret(caplog):
    caplog.set_level(logging.DEBUG)
    await headers(oauth1(), Outgoing("POST", "https://stream.example/?a=1", "b=2"))
    assert "_secret" not in caplog.text


# --- OAuth 2.0 ----------------------------------------------------------------------------------


class Endpoint:
    """A token endpoint that gives numbered tokens, or whatever answer it is told to give."""

    def __init__(self, token: str = "token", **more: object) -> None:
        self.token = token
        self.more = more
        self.answer: tuple[int, bytes] | Exception | None = None
        self.asked: list[tuple[str, Mapping[str, str], bytes]] = []

    async def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        self.asked.append((url, headers, body))
        await asyncio.sleep(0)
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is not None:
            return self.answer
        given = {"access_token": f"{self.token}{len(self.asked)}", "token_type": "Bearer", **self.more}
        return 200, json.dumps(given).encode()


def oauth2(secret: Secret | None = None, **more: str) -> OAuth2ClientCredentials:
    return OAuth2ClientCredentials("https://tokens.example/oauth2", "me", secret or always(SECRET), **more)


async def token(one: OAuth2ClientCredentials, endpoint: Endpoint, now: float) -> str:
    sent = await one.headers(GET, endpoint, now)
    assert sent.keys() == {"authorization"}
    return sent["authorization"].removeprefix("Bearer ")


async def test_a_token_is_asked_for_as_the_standard_says():
    endpoint = Endpoint()
    one = OAuth2ClientCredentials("https://tokens.example/", "me: ü", always("a b%:&"), "read write")
    assert await token(one, endpoint, NOW) == "token1"
    [(url, sent, body)] = endpoint.asked
    assert url == "https://tokens.example/"
    assert dict(parse_qsl(body.decode(), strict_parsing=True)) == {
        "grant_type": "client_credentials",
        "scope": "read write",
    }
    assert sent == {
        "accept": "application/json",
        "content-type": "application/x-www-form-urlencoded",
        "authorization": "Basic " + base64.b64encode(b"me%3A+%C3%BC:a+b%25%3A%26").decode(),
    }


async def test_without_a_scope_none_is_asked_for():
    endpoint = Endpoint(scope="whatever the server grants")
    await token(oauth2(), endpoint, NOW)
    assert endpoint.asked[0][2] == b"grant_type=client_credentials"


async def test_another_scope_than_asked_for_is_taken():
    """The upstream knows best what it needs, and says 403."""
    assert await token(oauth2(scope="read write"), Endpoint(scope="read"), NOW) == "token1"


@pytest.mark.parametrize(
    ("life_s", "left_s"), [(3600, 360), (100, 30), (300, 30), ("3600", 360), (3600.9, 360)]
)
async def test_a_token_is_renewed_shortly_before_it_expires(life_s, left_s):
    endpoint = Endpoint(expires_in=life_s)
    one = oauth2()
    renew_at = NOW + int(life_s) - left_s
    for now in (NOW, NOW + 1, renew_at - 0.1):
        assert await token(one, endpoint, now) == "token1"
    assert await token(one, endpoint, renew_at) == "token2"
    assert await token(one, endpoint, renew_at + int(life_s) - left_s - 0.1) == "token2"


@pytest.mark.parametrize("life_s", [-5, 1, 30])
async def test_a_token_of_a_short_life_is_used_once(life_s):
    endpoint = Endpoint(expires_in=life_s)
    one = oauth2()
    assert [await token(one, endpoint, NOW) for _ in range(3)] == ["token1", "token2", "token3"]


@pytest.mark.parametrize("more", [{}, {"expires_in": None}, {"expires_in": 10**400}])
async def test_a_token_without_an_end_is_kept(more):
    endpoint = Endpoint(**more)
    one = oauth2()
    for days in range(0, 10_000, 1000):
        assert await token(one, endpoint, NOW + days * 86400) == "token1"


@pytest.mark.parametrize(
    "failure",
    [(503, b""), (400, b'{"error": "invalid_client"}'), OSError("no network"), Unreachable("no address")],
)
async def test_where_a_renewal_fails_the_old_token_serves_until_it_expires(failure):
    endpoint = Endpoint(expires_in=1000)
    one = oauth2()
    await token(one, endpoint, NOW)
    endpoint.answer = failure
    assert await token(one, endpoint, NOW + 900) == "token1"
    assert await token(one, endpoint, NOW + 999) == "token1"
    assert len(endpoint.asked) == 3
    with pytest.raises((ValueError, OSError, Unreachable)):
        await token(one, endpoint, NOW + 1000)
    endpoint.answer = None
    assert await token(one, endpoint, NOW + 1000) == "token5"


async def test_a_changed_client_secret_drops_the_token(tmp_path):
    file = tmp_path / "secret"
    file.write_text("old")
    endpoint = Endpoint(expires_in=1000)
    one = oauth2(from_file(file))
    assert await token(one, endpoint, NOW) == "token1"
    file.write_text("new")
    endpoint.answer = (401, b'{"error": "invalid_client"}')
    with pytest.raises(ValueError, match="the token endpoint answered 401: invalid_client"):
        await token(one, endpoint, NOW + 1)
    endpoint.answer = None
    assert await token(one, endpoint, NOW + 2) == "token3"
    assert endpoint.asked[2][1]["authorization"] == "Basic " + base64.b64encode(b"me:new").decode()


async def test_while_the_secret_is_unreadable_the_token_serves(tmp_path):
    file = tmp_path / "secret"
    file.write_text(SECRET)
    endpoint = Endpoint(expires_in=1000)
    one = oauth2(from_file(file))
    await token(one, endpoint, NOW)
    file.unlink()
    assert await token(one, endpoint, NOW + 999) == "token1"
    with pytest.raises(FileNotFoundError):
        await token(one, endpoint, NOW + 1000)


async def test_readers_that_ask_at_once_fetch_one_token():
    endpoint = Endpoint(expires_in=1000)
    one = oauth2()
    for now in (NOW, NOW + 950):
        tokens = await asyncio.gather(*(token(one, endpoint, now) for _ in range(5)))
        assert len(set(tokens)) == 1
    assert len(endpoint.asked) == 2


async def test_a_reader_that_gives_up_leaves_the_fetching_to_the_next():
    endpoint = Endpoint()
    one = oauth2()
    first, second = (asyncio.create_task(token(one, endpoint, NOW)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == "token2"


# --- Refused tokens -----------------------------------------------------------------------------


async def test_a_token_revoked_early_is_replaced():
    endpoint = Endpoint()
    one = oauth2()
    before = one.fingerprint()
    for day in range(5):
        at = NOW + day * 86400
        assert await token(one, endpoint, at) == f"token{day + 1}"
        assert await token(one, endpoint, at + 60) == f"token{day + 1}"
        one.rejected()
        assert one.fingerprint() != before
        before = one.fingerprint()


@pytest.mark.parametrize("every_s", [0, 1, 300, 86400])
async def test_an_upstream_that_refuses_every_token_costs_two(every_s):
    endpoint = Endpoint()
    one = oauth2()
    marks = []
    for attempt in range(50):
        await token(one, endpoint, NOW + attempt * every_s)
        one.rejected()
        marks.append(one.fingerprint())
    assert len(endpoint.asked) == 2
    assert len(set(marks)) == 1


async def test_a_token_that_was_refused_and_then_works_is_replaced_when_it_is_revoked():
    endpoint = Endpoint()
    one = oauth2()
    for now in (NOW, NOW + 1, NOW + 300):
        await token(one, endpoint, now)
        one.rejected()
    before = one.fingerprint()
    assert await token(one, endpoint, NOW + 600) == "token2"
    assert await token(one, endpoint, NOW + 659) == "token2"
    one.rejected()
    assert one.fingerprint() == before
    await token(one, endpoint, NOW + 700)
    await token(one, endpoint, NOW + 760)
    one.rejected()
    assert one.fingerprint() != before
    assert await token(one, endpoint, NOW + 761) == "token3"


async def test_two_readers_refused_with_one_token_drop_one():
    endpoint = Endpoint()
    one = oauth2()
    await token(one, endpoint, NOW)
    await token(one, endpoint, NOW + 100)
    one.rejected()
    assert await token(one, endpoint, NOW + 101) == "token2"
    one.rejected()  # the other reader, about token1
    assert await token(one, endpoint, NOW + 102) == "token2"


async def test_a_token_refused_while_it_is_renewed_does_not_serve_on():
    endpoint = Endpoint(expires_in=1000)
    one = oauth2()
    await token(one, endpoint, NOW)
    endpoint.answer = (503, b"")
    renewal = asyncio.create_task(token(one, endpoint, NOW + 950))
    await asyncio.sleep(0)
    one.rejected()
    with pytest.raises(ValueError, match="503"):
        await renewal


# --- What token endpoints say -------------------------------------------------------------------

LEAK = f"{SECRET}-token"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((400, b'{"error": "invalid_client"}'), "400: invalid_client"),
        ((401, b'{"error": "server_error", "error_description": "%s"}' % LEAK.encode()), "401: server_error"),
        ((400, b'{"error": "invalid_scope"}'), "400: invalid_scope"),
        ((200, b'{"error": "unauthorized_client"}'), "200: unauthorized_client"),
        ((400, b'{"error": "%s"}' % LEAK.encode()), "400"),
        ((400, b'{"error": ["%s"]}' % LEAK.encode()), "400"),
        ((400, b'{"error": null}'), "400"),
        ((400, b'{"access_token": "%s"}' % LEAK.encode()), "400"),
        ((201, b'{"access_token": "%s"}' % LEAK.encode()), "201"),
        ((503, b"<html>%s</html>" % LEAK.encode()), "503"),
        ((503, b"\xff" + LEAK.encode()), "503"),
        ((302, b""), "302"),
        ((200, b""), "200: no token"),
        ((200, b"<html>%s" % LEAK.encode()), "200: no token"),
        ((200, b'{"token": "%s"}' % LEAK.encode()), "200: no token"),
        ((200, b'["%s"]' % LEAK.encode()), "200: rubbish"),
        ((200, b"1"), "200: rubbish"),
        ((200, b"null"), "200: rubbish"),
        ((200, b"[" * 100_000), "200: rubbish"),
        ((200, b"\xff" + LEAK.encode()), "200: rubbish"),
        ((200, b'{"access_token": "%s", "expires_in": "soon"}' % LEAK.encode()), "200: rubbish"),
        ((200, b'{"access_token": "%s", "expires_in": 1e999}' % LEAK.encode()), "200: rubbish"),
        ((200, b'{"access_token": "%s", "expires_in": [1]}' % LEAK.encode()), "200: rubbish"),
    ],
)  # fmt: skip
async def test_an_answer_without_a_token_is_explained_without_quoting_it(answer, message):
    endpoint = Endpoint()
    endpoint.answer = answer
    with pytest.raises(ValueError) as raised:
        await token(oauth2(), endpoint, NOW)
    assert str(raised.value) == f"the token endpoint answered {message}"
    assert not shows(raised.value, SECRET)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"access_token": LEAK, "token_type": "mac"}, "another type than Bearer"),
        ({"access_token": LEAK, "token_type": 7}, "another type than Bearer"),
        ({"access_token": ""}, "a token that is no text"),
        ({"access_token": None}, "a token that is no text"),
        ({"access_token": {"": LEAK}}, "a token that is no text"),
        ({"access_token": LEAK + "\r\n"}, "the token holds characters that no header can"),
        ({"access_token": LEAK + "ü"}, "the token holds characters that no header can"),
    ],
)
async def test_a_token_that_cannot_be_used_is_refused(given, message):
    endpoint = Endpoint()
    endpoint.answer = (200, json.dumps(given).encode())
    with pytest.raises(ValueError, match=message) as raised:
        await token(oauth2(), endpoint, NOW)
    assert not shows(raised.value, SECRET)


@pytest.mark.parametrize(
    "answer",
    [
        b'{"access_token": "abc"}',
        b'{"access_token": "abc", "token_type": "BEARER", "scope": "a b"}',
        b"access_token=abc&token_type=bearer",
    ],
)
async def test_a_token_is_found_in_what_servers_answer(answer):
    endpoint = Endpoint()
    endpoint.answer = (200, answer)
    assert await token(oauth2(), endpoint, NOW) == "abc"


def test_the_module_speaks_no_http():
    tree = ast.parse(Path(credentials.__file__).read_text())
    imported = Counter(
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom)
            else []
        )
    )  # fmt: skip
    assert not imported.keys() & {"httpx", "aiohttp", "socket", "http", "ssl"}
