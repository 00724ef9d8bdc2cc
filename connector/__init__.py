"""Kafka stream-ingestion connector: predicates in, statuses out, nothing lost on the way."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("kafka-stream-connector")
except PackageNotFoundError:  # run from a bare checkout, never installed
    __version__ = "0+unknown"
