"""``analytics-pipeline stream-demo``: the demo's data into the Kafka that is configured. For Docker Compose.

Sends only; starts no server and reads no database.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from confluent_kafka import Producer

    from analytics_pipeline.settings import Settings

#: Between two looks at what is due: a tenth of what a person notices.
TICK_S = 0.1
KAFKA_TIMEOUT_S = 30.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(stream_demo)


def stream_demo(
    live: Annotated[bool, typer.Option(help="Go on with a live tail until Ctrl-C or SIGTERM.")] = True,
) -> None:
    """Stream the demo's water flow to KAFKA_BROKERS: its history if the topic is empty, then a live tail."""
    from confluent_kafka import Producer

    from analytics_pipeline.cli import _demo_data as demo
    from analytics_pipeline.cli._session import create_topics
    from analytics_pipeline.settings import load_settings

    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    settings, flow = load_settings(), demo.load_flow()
    create_topics(settings, [demo.TOPIC])
    # Not quiet: in its container, librdkafka's lines are all that says why nothing is sent.
    producer = Producer({**settings.kafka_config(), "linger.ms": 20})
    if _is_empty(settings, demo.TOPIC):
        sent = _send(producer, demo.TOPIC, ((demo.MAIN, one) for one in demo.history(flow, datetime.now(UTC))))
        typer.echo(f"sent {sent} readings of history to {demo.TOPIC}")
    if live:
        typer.echo(f"streaming {demo.MESSAGES_PER_S} readings a second to {demo.TOPIC}")
        tail = demo.LiveTail(flow, datetime.now(UTC))
        while not stopped.wait(TICK_S):
            _send(producer, demo.TOPIC, tail.due(datetime.now(UTC)))
    producer.flush(KAFKA_TIMEOUT_S)


def _send(producer: Producer, topic: str, messages: Iterable[tuple[str, bytes]]) -> int:
    sent = 0
    for key, payload in messages:
        producer.produce(topic, payload, key)
        sent += 1
    producer.poll(0)
    return sent


def _is_empty(settings: Settings, topic: str) -> bool:
    """Whether nothing was ever sent: a container that starts again must not send the history again."""
    from confluent_kafka import Consumer, TopicPartition

    group = f"{settings.consumer_group}.stream-demo"
    consumer = Consumer({**settings.kafka_config(), "group.id": group, "log_level": 0})
    try:
        metadata = consumer.list_topics(topic, timeout=KAFKA_TIMEOUT_S).topics[topic]
        return all(
            consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=KAFKA_TIMEOUT_S)[1] <= 0
            for partition in metadata.partitions
        )
    finally:
        consumer.close()
