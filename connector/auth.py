"""Authentication in the configuration: its kinds, and where each finds its secrets.

Every secret ``x`` may be a file instead: ``x_file`` names it, and it is read again at every use, so a
rotated secret needs no restart.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

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
from connector.stream.dialect import HeaderName


def _readable(path: Path) -> Path:
    try:
        content = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from None
    if not content:
        raise ValueError(f"{path} is empty")
    return path


SecretFile = Annotated[Path, AfterValidator(_readable)]


class NoAuth(Group):
    """The upstream asks for no credentials, or for a client certificate alone."""

    kind: Literal["none"] = "none"

    def credentials(self) -> Credentials:
        """Return what proves it to the upstream."""
        return NoCredentials()


class BearerAuth(Group):
    """An access token."""

    kind: Literal["bearer"]
    token: SecretStr | None = None
    token_file: SecretFile | None = None

    @model_validator(mode="after")
    def _one_source(self) -> BearerAuth:
        one_of("token", self.token, self.token_file)
        return self

    def credentials(self) -> Credentials:
        """Return what proves it to the upstream."""
        return Bearer(reader(self.token, self.token_file))


class BasicAuth(Group):
    """A user and a password."""

    kind: Literal["basic"]
    username: str = Field(min_length=1)
    password: SecretStr | None = None
    password_file: SecretFile | None = None

    @model_validator(mode="after")
    def _one_source(self) -> BasicAuth:
        one_of("password", self.password, self.password_file)
        return self

    def credentials(self) -> Credentials:
        """Return what proves it to the upstream."""
        return Basic(self.username, reader(self.password, self.password_file))


class ApiKeyAuth(Group):
    """A key in a header of the upstream's choice."""

    kind: Literal["api_key"]
    header: HeaderName = "X-API-Key"
    key: SecretStr | None = None
    key_file: SecretFile | None = None

    @model_validator(mode="after")
    def _one_source(self) -> ApiKeyAuth:
        one_of("key", self.key, self.key_file)
        return self

    def credentials(self) -> Credentials:
        """Return what proves it to the upstream."""
        return ApiKey(self.header, reader(self.key, self.key_file))


class OAuth1Auth(Group):
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

    @model_validator(mode="after")
    def _one_source_each(self) -> OAuth1Auth:
        one_of("consumer_key", self.consumer_key, self.consumer_key_file)
        one_of("consumer_secret", self.consumer_secret, self.consumer_secret_file)
        one_of("token", self.token, self.token_file)
        one_of("token_secret", self.token_secret, self.token_secret_file)
        return self

    def credentials(self) -> Credentials:
        """Return what proves it to the upstream."""
        return OAuth1(
            reader(self.consumer_key, self.consumer_key_file),
            reader(self.consumer_secret, self.consumer_secret_file),
            reader(self.token, self.token_file),
            reader(self.token_secret, self.token_secret_file),
        )


class OAuth2Auth(Group):
    """OAuth 2 client credentials (RFC 6749, section 4.4): a token, renewed before it expires."""

    kind: Literal["oauth2"]
    token_url: HttpUrl
    client_id: str = Field(min_length=1)
    client_secret: SecretStr | None = None
    client_secret_file: SecretFile | None = None
    scope: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> OAuth2Auth:
        one_of("client_secret", self.client_secret, self.client_secret_file)
        return self

    def credentials(self) -> Credentials:
        """Return what proves it to the upstream."""
        secret = reader(self.client_secret, self.client_secret_file)
        return OAuth2ClientCredentials(str(self.token_url), self.client_id, secret, self.scope)


Auth = Annotated[
    NoAuth | BearerAuth | BasicAuth | ApiKeyAuth | OAuth1Auth | OAuth2Auth, Field(discriminator="kind")
]


def one_of(name: str, secret: SecretStr | None, file: Path | None) -> None:
    """Check that a secret is given in one way.

    Raises:
        ValueError: it is not, or it is empty.
    """
    if (secret is None) == (file is None):
        raise ValueError(f"give exactly one of {name} and {name}_file")
    if secret is not None and not secret.get_secret_value():
        raise ValueError(f"{name} is empty")


def reader(secret: SecretStr | None, file: Path | None) -> Callable[[], str]:
    """Return what reads a secret; a file is read anew each time, because it may have been rotated."""
    assert file is not None or secret is not None

    def read() -> str:
        text = file.read_text("utf-8").strip() if file is not None else secret.get_secret_value()  # type: ignore[union-attr]
        if not text.isprintable():
            raise ValueError(f"{file or 'the secret'} holds control characters")
        return text

    return read
