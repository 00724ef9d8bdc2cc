"""The whole arch on one machine: a real broker, the sample upstream and the connector."""
