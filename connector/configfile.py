"""Settings from a YAML file and the environment, with every mistake named at its place."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsError

from connector.errors import ConfigurationError

_S = TypeVar("_S", bound=BaseSettings)


class Group(BaseModel):
    """A part of the settings: unknown keys are mistakes, and nothing changes after the start."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def load(settings: type[_S], prefix: str, path: Path | None, environ: Mapping[str, str]) -> _S:
    """Return *settings* read from the file *path* and the environment.

    Args:
        settings: the class to fill; it reads the environment itself.
        prefix: what its variables begin with.
        path: a YAML file, or None for the environment alone.
        environ: the environment, to look for variables that no setting answers to.

    Raises:
        ConfigurationError: naming every mistake.
    """
    mistakes = list(_unknown_variables(settings, prefix, environ))
    content: dict[str, Any] = {}
    if path is not None:
        try:
            content = _read(path)
        except ConfigurationError as error:
            raise ConfigurationError([*mistakes, *error.mistakes]) from None
    for key in [key for key in content if key.startswith("_")]:  # pydantic-settings would obey these
        del content[key]
        mistakes.append(f"{key}: no such setting")
    try:
        loaded = settings(**content)
    except ValidationError as error:
        mistakes += explain(error, _names(settings))
    except SettingsError as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        mistakes.append(f"environment: {error}{cause}")
    if mistakes:
        raise ConfigurationError(mistakes)
    return loaded


def explain(error: ValidationError, names: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield one line ``place: what is wrong`` per mistake.

    Args:
        error: what pydantic found.
        names: settings there are, to guess what a misspelt one was meant to be.
    """
    for mistake in error.errors(include_url=False):
        place = ".".join(_location(mistake))
        for line in _message(mistake, names).splitlines():
            # A message that begins with a place of its own continues ours.
            inner, colon, rest = line.partition(": ")
            is_place = colon and " " not in inner
            yield (
                f"{place}.{inner}: {rest}" if is_place and place else f"{place}: {line}" if place else line
            )


def _message(mistake: ErrorDetails, names: frozenset[str]) -> str:
    match mistake["type"]:
        case "extra_forbidden":
            misspelt = str(mistake["loc"][-1])
            near = difflib.get_close_matches(misspelt, names, n=1)
            return "no such setting" + (f"; did you mean {near[0]}?" if near else "")
        case "missing":
            return "is missing"
        case "value_error":
            return str(mistake["ctx"]["error"])
        case _:
            # The input is left out on purpose: it may be a secret.
            return mistake["msg"][:1].lower() + mistake["msg"][1:]


def _location(mistake: ErrorDetails) -> Iterator[str]:
    parts = [str(part) for part in mistake["loc"]]
    for before, part in zip(["", *parts], parts, strict=False):
        is_tag = before == "auth" and part in {"none", "basic", "bearer"}  # of a union: no place
        if not is_tag and part != "[key]":
            yield part


def _unknown_variables(
    settings: type[BaseSettings], prefix: str, environ: Mapping[str, str]
) -> Iterator[str]:
    """Yield what pydantic-settings ignores: variables of ours that name no setting at the top."""
    for variable in environ:
        if not variable.upper().startswith(prefix):
            continue
        name = variable[len(prefix) :].split("__")[0].lower()
        if name not in settings.model_fields:
            near = difflib.get_close_matches(name, settings.model_fields, n=1)
            hint = f"; did you mean {prefix}{near[0].upper()}?" if near else ""
            yield f"{variable}: no such setting{hint}"


def _names(model: type[BaseModel]) -> frozenset[str]:
    """Return the names of all settings, nested ones too."""
    schema = model.model_json_schema()
    groups = [schema, *schema.get("$defs", {}).values()]
    return frozenset(name for group in groups for name in group.get("properties", {}))


class _RepeatedKey(yaml.constructor.ConstructorError):
    """A key that stands twice."""


class _UniqueKeys(yaml.SafeLoader):
    """YAML says that a mapping's keys are unique; PyYAML lets the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 (PyYAML's signature)
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise _RepeatedKey(None, None, f"{key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text("utf-8"), Loader=_UniqueKeys)  # noqa: S506 (a SafeLoader)
    except OSError as error:
        raise ConfigurationError([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise ConfigurationError([f"{path}: is not UTF-8 text"]) from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}, column {where.column + 1}" if where else ""
        # The loader's own words may quote an undefined alias or tag, and that may be a secret.
        kind = (
            error.problem
            if isinstance(error, _RepeatedKey | yaml.scanner.ScannerError | yaml.parser.ParserError)
            else "an alias, tag or value that cannot be read"
        )
        raise ConfigurationError([f"{path}:{line}: not YAML: {kind}"]) from None
    except (ValueError, TypeError, RecursionError):
        raise ConfigurationError(
            [f"{path}: not YAML that can be read: a value, a key or the nesting"]
        ) from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigurationError([f"{path}: expected settings by name at the top, like kafka:"])
    return content
