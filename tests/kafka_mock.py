"""Brokers that librdkafka itself plays, in this process, at real ports: its mock cluster, no Kafka."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def mock_brokers(count: int = 1) -> Iterator[str]:
    """``HOST:PORT`` of brokers that live until the end of the block."""
    from confluent_kafka import Producer

    owner = Producer({"bootstrap.servers": "-", "test.mock.num.brokers": count})
    found = owner.list_topics(timeout=10).brokers.values()
    yield ",".join(f"{one.host}:{one.port}" for one in found)
    del owner
