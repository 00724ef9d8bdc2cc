"""What a dialect says about requests: predicates, and whatever goes along with them. Pure."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from connector.stream.values import HeaderName, HeaderValue, Pattern


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Predicate(_Group):
    """One predicate: how it is called in requests, and what the upstream takes."""

    parameter: str | None = Field(default=None, min_length=1)
    """Its name in requests, where that is another than in control records."""

    max_values: PositiveInt | None = None
    max_bytes: PositiveInt | None = None
    """Longest value, in bytes of UTF-8."""

    pattern: Pattern | None = None
    """Regular expression that each value matches as a whole."""

    lower_case: bool = False
    """Case makes no difference to the upstream: values are put in lower case, so equal sets are equal."""


class Partition(_Group):
    """How one of several connections with the same predicates asks for its share of the statuses."""

    parameter: str = Field(min_length=1)
    """Request parameter with the number of the share."""

    first: Literal[0, 1]
    """The number of the first share."""

    count_parameter: str | None = Field(default=None, min_length=1)
    """Request parameter with how many shares there are, where the upstream wants to be told."""

    def parameters(self, number: int, count: int) -> dict[str, str]:
        """Return what asks for a share: *number* of *count*, counted from 1."""
        told = {self.parameter: str(self.first + number - 1)}
        return told if self.count_parameter is None else {**told, self.count_parameter: str(count)}


class Request(_Group):
    """How predicates are asked for."""

    method: Literal["GET", "POST"] = "GET"
    encoding: Literal["query", "form", "json"] = "query"
    """Where the parameters go: the URL's query, or the body of a POST."""

    separator: str | None = None
    """Joins the values of one predicate; without it the parameter is repeated (in JSON: a list)."""

    parameters: dict[str, str] = {}
    """Sent with every request."""

    headers: dict[HeaderName, HeaderValue] = {}
    """Sent with every request."""

    predicates: dict[str, Predicate] = Field(min_length=1)
    """The predicates this upstream knows, by their names in control records."""

    partition: Partition | None = None

    @model_validator(mode="after")
    def _fitting(self) -> Request:
        if self.method == "GET" and self.encoding != "query":
            raise ValueError(f"a GET has no body for the encoding {self.encoding!r}")
        names = [rule.parameter or name for name, rule in self.predicates.items()]
        if "paused" in self.predicates:
            raise ValueError("no predicate can be called 'paused': control records use that name")
        if taken := sorted(set(names) & self.parameters.keys()):
            raise ValueError(f"parameters and predicates share the name {taken[0]!r}")
        if len(set(names)) < len(names):
            raise ValueError("two predicates become the same parameter")
        if self.partition is not None:
            own = list(self.partition.parameters(1, 1))
            if self.partition.parameter == self.partition.count_parameter:
                raise ValueError("partition: parameter and count_parameter are the same")
            if taken := sorted(set(own) & {*names, *self.parameters}):
                raise ValueError(f"partition: {taken[0]!r} is a parameter already")
        return self

    def names(self) -> set[str]:
        """Return the names of all parameters that may be sent, but for what resumes."""
        own = {} if self.partition is None else self.partition.parameters(1, 1)
        predicates = (rule.parameter or name for name, rule in self.predicates.items())
        return {*self.parameters, *predicates, *own}
