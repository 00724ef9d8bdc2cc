"""Authentication in the configuration: its kinds, and where each finds its secrets.

Every secret ``x`` may be a file instead: ``x_file`` names it, and it is read again at every use, so a
rotated secret needs no restart.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, HttpUrl, SecretStr, model_validator

from connector.configfile import Group
from connector.stream.credentials import (
    ApiKey,
    Basic,
    Bearer,
    Credentials,
    NoCredentials,
    OAuth1,
    OAuth2ClientCredentials,
)
from connector.stream.values import HeaderName


def _readable(path: Path) -> Path:
    try:
        content = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from None
    if not content:
        raise ValueError(f"{path} is empty")
    return path


SecretFile = Annotated[Path, AfterValidator(_readable)]


class _WithSecrets(Group):
    """Each secret ``x`` is given once: as ``x`` or as ``x_file``."""

    @model_validator(mode="after")
    def _one_source_each(self) -> Self:
        for file in type(self).model_fields:
            if file.endswith("_file"):
                name = file.removesuffix("_file")
                _one_of(name, getattr(self, name), getattr(self, file))
        return self

    def _reader(self, name: str) -> Callable[[], str]:
        return reader(getattr(self, name), getattr(self, f"{name}_file"))


class NoAuth(Group):
    """The upstream asks for no credentials, or for a client certificate alone."""

    kind: Literal["none"] = "none"

    def credentials(self) -> Credentials:
        """Return what proves it to the upstream."""
        return NoCredentials()


class BearerAuth(_WithSecrets):
    """An access token."""

    kind: Literal["bearer"]
    token: SecretStr | None = None
    token_file: SecretFile | None = None

    def credentials(self) -> Credentials:
        """Return what proves it to the upstream."""
        return Bearer(self._reader("token"))


class BasicAuth(_WithSecrets):
    """A user and a password."""

    kind: Literal["basic"]
    username: str = Field(min_length=1)
    password: SecretStr | None = None
    password_file: SecretFile | None = None

    def credentials(self) -> Credentials:
        """Return what proves it to the upstream."""
        return Basic(self.username, self._reader("password"))


class ApiKeyAuth(_WithSecrets):
    """A key in a header of the upstream's choice."""

    kind: Literal["api_key"]
    header: HeaderName = "X-API-Key"
    key: SecretStr | None = None
    key_file: SecretFile | None = None

    def credentials(self) -> Credentials:
        """Return what proves it to the upstream."""
        return ApiKey(self.header, self._reader("key"))


class OAuth1Auth(_WithSecrets):
    """OAuth 1.0a (RFC 5849): each request is signed, its form included."""

    kind: Literal["oauth1"]
    consumer_key: SecretStr | None = None
    consumer_key_file: SecretFile | None = None
    consumer_secret: SecretStr | None = None
    consumer_secret_file: SecretFile | None = None
    token: SecretStr | None = None
    token_file: SecretFile | None = None
    token_secret: SecretStr | None = None
    token_secret_file: SecretFile | None = None

    def credentials(self) -> Credentials:
        """Return what proves it to the upstream."""
        return OAuth1(
            self._reader("consumer_key"),
            self._reader("consumer_secret"),
            self._reader("token"),
            self._reader("token_secret"),
        )


class OAuth2Auth(_WithSecrets):
    """OAuth 2 client credentials (RFC 6749, section 4.4): a token, renewed before it expires."""

    kind: Literal["oauth2"]
    token_url: HttpUrl
    client_id: str = Field(min_length=1)
    client_secret: SecretStr | None = None
    client_secret_file: SecretFile | None = None
    scope: str | None = None

    def credentials(self) -> Credentials:
        """Return what proves it to the upstream."""
        secret = self._reader("client_secret")
        return OAuth2ClientCredentials(str(self.token_url), self.client_id, secret, self.scope)


Auth = Annotated[
    NoAuth | BearerAuth | BasicAuth | ApiKeyAuth | OAuth1Auth | OAuth2Auth, Field(discriminator="kind")
]


def reader(secret: SecretStr | None, file: Path | None) -> Callable[[], str]:
    """Return what reads a secret; a file is read anew each time, because it may have been rotated."""
    if file is not None:
        return lambda: _printable(file.read_text("utf-8").strip(), str(file))
    assert secret is not None
    return lambda: _printable(secret.get_secret_value(), "the secret")


def _one_of(name: str, secret: SecretStr | None, file: Path | None) -> None:
    if (secret is None) == (file is None):
        raise ValueError(f"give exactly one of {name} and {name}_file")
    if secret is not None and not secret.get_secret_value():
        raise ValueError(f"{name} is empty")


def _printable(text: str, where: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{where} holds control characters")
    return text
