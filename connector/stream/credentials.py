"""What proves to an upstream who asks. Never speaks HTTP: what fetches a token is passed in.

Secrets are asked for at every use, because their files may be rotated at any time, and stand in no error
and no repr.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import quote_plus

from oauthlib.oauth1 import Client
from oauthlib.oauth2 import BackendApplicationClient, OAuth2Error, OAuth2Token
from oauthlib.oauth2.rfc6749.errors import CustomOAuth2Error, MissingTokenError

from connector.errors import Disconnected

Secret = Callable[[], str]
"""Returns a secret, read anew from its file at each use; may raise OSError or ValueError."""

Fetch = Callable[[str, Mapping[str, str], bytes], Awaitable[tuple[int, bytes]]]
"""Posts a body: URL, headers, body to status, body; may raise OSError, ValueError or Disconnected."""

_FORM = "application/x-www-form-urlencoded"

_RENEW_BEFORE_S = 30.0
_RENEW_BEFORE_SHARE = 0.1
"""A token is renewed when less than this share of its life is left, or less than the seconds above."""

_PROVEN_AFTER_S = 60.0
"""Tokens used for so long without a refusal work: a refusal comes within an attempt's timeouts."""

_LONGEST_LIFE_S = 1 << 31
"""Longest life believed: an absurd one overflows."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """The request about to be sent, as a signature needs it.

    Attributes:
        url: with its query.
        form: the body as sent, where it is ``application/x-www-form-urlencoded``; else None.
    """

    method: str
    url: str
    form: str | None


class Credentials(Protocol):
    """Makes the headers of each attempt; the readers of one stream share it."""

    async def headers(self, outgoing: Outgoing, fetch: Fetch, now: float) -> dict[str, str]:
        """Return the headers that prove who asks, printable ASCII all.

        Args:
            outgoing: what is about to be sent.
            fetch: asks a token endpoint, where tokens come from one.
            now: seconds since the epoch.

        Raises:
            ValueError: there are none now, or none that a header can hold.
            OSError: a secret's file cannot be read, or no token be fetched.
            Disconnected: no token could be fetched.
        """
        ...

    def fingerprint(self) -> object:
        """Return what stays equal as long as trying again after a refusal is pointless; never raises."""
        ...

    def rejected(self) -> None:
        """Take note that the upstream answered 401."""
        ...


class _Constant(ABC):
    """Credentials that depend on nothing but their secrets."""

    __slots__ = ()

    async def headers(self, outgoing: Outgoing, fetch: Fetch, now: float) -> dict[str, str]:  # noqa: ARG002
        """See `Credentials`."""
        return self._headers()

    @abstractmethod
    def _headers(self) -> dict[str, str]: ...

    @abstractmethod
    def fingerprint(self) -> object:
        """See `Credentials`."""

    def rejected(self) -> None:  # noqa: B027 (nothing is kept that could be dropped)
        """See `Credentials`."""


@dataclass(frozen=True, slots=True)
class NoCredentials(_Constant):
    """The upstream asks for none."""

    def _headers(self) -> dict[str, str]:
        return {}

    def fingerprint(self) -> object:
        """See `Credentials`."""
        return None


@dataclass(frozen=True, slots=True)
class Bearer(_Constant):
    """An access token (RFC 6750)."""

    token: Secret

    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {_sendable(_read(self.token, 'token'), 'token')}"}

    def fingerprint(self) -> object:
        """See `Credentials`."""
        return _mark(self.token)


@dataclass(frozen=True, slots=True)
class Basic(_Constant):
    """A user and a password, in UTF-8 (RFC 7617)."""

    username: str
    password: Secret

    def _headers(self) -> dict[str, str]:
        return {"authorization": _basic(_text(self.username, "username"), _read(self.password, "password"))}

    def fingerprint(self) -> object:
        """See `Credentials`."""
        return _mark(self.password)


@dataclass(frozen=True, slots=True)
class ApiKey(_Constant):
    """A key in a header of its own, e.g. ``x-api-key``."""

    header: str
    key: Secret

    def _headers(self) -> dict[str, str]:
        return {self.header: _sendable(_read(self.key, "key"), "key")}

    def fingerprint(self) -> object:
        """See `Credentials`."""
        return _mark(self.key)


@dataclass(frozen=True, slots=True)
class OAuth1:
    """A signature over each request: OAuth 1.0a with HMAC-SHA1 (RFC 5849)."""

    consumer_key: Secret
    consumer_secret: Secret
    token: Secret
    token_secret: Secret

    async def headers(self, outgoing: Outgoing, fetch: Fetch, now: float) -> dict[str, str]:  # noqa: ARG002
        """See `Credentials`."""
        client = Client(
            _read(self.consumer_key, "consumer key"),
            client_secret=_read(self.consumer_secret, "consumer secret"),
            resource_owner_key=_read(self.token, "token"),
            resource_owner_secret=_read(self.token_secret, "token secret"),
            timestamp=str(int(now)),
        )
        _, headers, body = client.sign(
            outgoing.url,
            http_method=outgoing.method,  # type: ignore[arg-type]  # any method will do
            body=outgoing.form,
            headers={} if outgoing.form is None else {"Content-Type": _FORM},
        )
        if body != outgoing.form:
            raise ValueError("the signature is for another body than the one to be sent")
        return {"authorization": _sendable(headers["Authorization"], "signature")}

    def fingerprint(self) -> object:
        """See `Credentials`."""
        return tuple(map(_mark, (self.consumer_key, self.consumer_secret, self.token, self.token_secret)))

    def rejected(self) -> None:
        """See `Credentials`."""


@dataclass(frozen=True, slots=True)
class _Token:
    """An access token; its instants are in seconds since the epoch.

    Attributes:
        obtained_with: the client secret that it was given for.
    """

    value: str = field(repr=False)
    obtained_with: str = field(repr=False)
    renew_at: float
    expires_at: float


@dataclass(slots=True, eq=False)
class OAuth2ClientCredentials:
    """Access tokens from a token endpoint: OAuth 2.0, client credentials grant (RFC 6749, section 4.4).

    A token is kept until shortly before it expires; without an ``expires_in`` until it is refused. Where
    its renewal fails it serves until it expires. A changed client secret drops it.

    A refused token may have been revoked, so it is dropped, and the fingerprint changes as another may do
    better. Its successors are kept though refused, until one has worked: an upstream that answers nothing
    but 401 shall not make the token endpoint pay.
    """

    token_url: str
    client_id: str
    client_secret: Secret
    scope: str | None = None
    _token: _Token | None = field(default=None, init=False, repr=False)
    _dropped: int = field(default=0, init=False, repr=False)  # tokens that were refused
    _may_drop: bool = field(default=True, init=False, repr=False)  # tokens work, as far as is known
    _used_since: float | None = field(default=None, init=False, repr=False)  # and not refused
    # Two readers that find the token old at once shall fetch one.
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock, init=False, repr=False)

    async def headers(self, outgoing: Outgoing, fetch: Fetch, now: float) -> dict[str, str]:  # noqa: ARG002
        """See `Credentials`."""
        async with self._lock:
            token = await self._current(fetch, now)
        if self._used_since is None:
            self._used_since = now
        elif now - self._used_since >= _PROVEN_AFTER_S:
            self._may_drop = True
        return {"authorization": f"Bearer {token.value}"}

    def fingerprint(self) -> object:
        """See `Credentials`."""
        return _mark(self.client_secret), self._dropped

    def rejected(self) -> None:
        """See `Credentials`."""
        self._used_since = None
        if self._token is not None and self._may_drop:
            self._token = None
            self._dropped += 1
            self._may_drop = False

    async def _current(self, fetch: Fetch, now: float) -> _Token:
        try:
            secret = _read(self.client_secret, "client secret")
            if self._token is not None and self._token.obtained_with != secret:
                self._token = None
            if self._token is None or now >= self._token.renew_at:
                self._token = await self._fetched(secret, fetch, now)
        except (OSError, ValueError, Disconnected):
            # Asked anew, not remembered: it may have been refused while the fetch was under way.
            if self._token is None or now >= self._token.expires_at:
                raise
        return self._token

    async def _fetched(self, secret: str, fetch: Fetch, now: float) -> _Token:
        client = BackendApplicationClient(self.client_id)
        body = client.prepare_request_body(scope=self.scope)
        # Form-encoded before they are joined (RFC 6749, section 2.3.1): an id may hold a colon.
        authorization = _basic(quote_plus(self.client_id), quote_plus(secret))
        headers = {"accept": "application/json", "content-type": _FORM, "authorization": authorization}
        status, answer = await fetch(self.token_url, headers, body.encode("ascii"))
        token = _parsed(client, status, answer)
        value, kind = token["access_token"], token.get("token_type", "bearer")
        if not isinstance(kind, str) or kind.lower() != "bearer":
            raise ValueError("the token endpoint gave a token of another type than Bearer")
        if not isinstance(value, str) or not value:
            raise ValueError("the token endpoint gave a token that is no text")
        life_s = min(token.get("expires_in", math.inf), _LONGEST_LIFE_S)
        return _Token(
            value=_sendable(value, "token"),
            obtained_with=secret,
            renew_at=now + life_s - max(_RENEW_BEFORE_S, _RENEW_BEFORE_SHARE * life_s),
            expires_at=now + life_s,
        )


def _parsed(client: BackendApplicationClient, status: int, answer: bytes) -> OAuth2Token:
    """Return what the token endpoint granted.

    Raises:
        ValueError: nothing. Of the answer it quotes a registered error code at most: the rest may
            repeat the secret.
    """
    reason = ""
    try:
        token = client.parse_request_body_response(answer.decode())
        if status == 200:
            return token
    except (CustomOAuth2Error, MissingTokenError):
        reason = ": no token" if status == 200 else ""
    except OAuth2Error as error:
        reason = f": {error.error}" if error.error else ""
    except Exception:  # noqa: BLE001 (oauthlib lets through whatever its parsing of rubbish meets)
        reason = ": rubbish" if status == 200 else ""
    raise ValueError(f"the token endpoint answered {status}{reason}")


def _read(secret: Secret, name: str) -> str:
    return _text(secret(), name)


def _text(text: str, name: str) -> str:
    if not text:  # a file that is being rewritten, say
        raise ValueError(f"the {name} is empty")
    if not text.isprintable():  # nor can lone surrogates be encoded, whose error would quote the secret
        raise ValueError(f"the {name} holds characters that cannot be printed")
    return text


def _sendable(value: str, name: str) -> str:
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"the {name} holds characters that no header can")
    return value


def _basic(username: str, password: str) -> str:
    return f"Basic {b64encode(f'{username}:{password}'.encode()).decode()}"


def _mark(secret: Secret) -> int | None:
    """Return a number that changes with the secret and tells nothing of it; None if it is unreadable."""
    try:
        return hash(secret())
    except (OSError, ValueError):
        return None
