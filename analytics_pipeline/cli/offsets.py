"""``analytics-pipeline offsets``: where each Kafka partition stands, and how to move that by hand."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analytics_pipeline.cli._shared import AsJson, age, console, open_database, print_json, table
from analytics_pipeline.errors import PipelineError

if TYPE_CHECKING:
    from analytics_pipeline.settings import Settings

KAFKA_TIMEOUT_S = 5.0
#: At once, while looking for the end of a log.
READ_MESSAGES = 10_000
READ_BYTES = 16 * 1024**2


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Where each Kafka partition stands: show and move it.", no_args_is_help=True)
    group.command("show")(show)
    group.command("seek")(seek)
    app.add_typer(group, name="offsets")


def show(as_json: AsJson = False) -> None:
    """Show the next offset of every partition, and its lag as of the last tick."""
    from analytics_pipeline.settings import load_settings
    from analytics_pipeline.storage.status import read_partitions

    with open_database(load_settings()) as conn:
        partitions = read_partitions(conn)
        with conn.cursor() as cursor:
            cursor.execute("SELECT now()")
            now = cursor.fetchone()[0]
    if as_json:
        print_json(partitions)
    elif not partitions:
        typer.echo("drained partitions: none; start the daemon, its sensor drain_kafka drains")
    else:
        columns = ("topic", "partition", "epoch", "next offset", "end", "lag", "watermark", "moved")
        rows = [
            (p.topic, p.partition, p.epoch, p.next_offset, p.high_offset, p.lag_messages, p.watermark,
             age(p.updated_at, now))
            for p in partitions
        ]  # fmt: skip
        console().print(table("Offsets", columns, rows))


def seek(
    topic: Annotated[str, typer.Argument()],
    partition: Annotated[int, typer.Argument(min=0)],
    offset: Annotated[int, typer.Argument(min=0, help="The next offset to read.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it.")] = False,
) -> None:
    """Make OFFSET the next one to read. Messages that are skipped are recorded as a gap.

    Backward only where nothing is stored from OFFSET on: to read stored messages again, materialize raw_events of
    their hours.
    """
    from analytics_pipeline.settings import load_settings
    from analytics_pipeline.storage import operator_actions

    settings = load_settings()
    if not yes:
        raise PipelineError(
            f"{topic}[{partition}]: nothing was changed; messages before offset {offset} that were not read yet would "
            "never be read: add --yes to do it"
        )
    _within_log(settings, topic, partition, offset)
    with open_database(settings) as conn:
        before = operator_actions.seek(conn, topic, partition, offset)
        conn.commit()
    skipped = f"; offsets {before.next_offset} to {offset - 1} are recorded as a gap"
    typer.echo(
        f"{topic}[{partition}]: next offset {offset}, was {before.next_offset}"
        f"{skipped if offset > before.next_offset else ''}"
    )


def _within_log(settings: Settings, topic: str, partition: int, offset: int) -> None:
    """An offset beyond the end would look like a log that began anew, and start an epoch."""
    low, high = _answered_bounds(settings, topic, partition)
    if offset > high:
        high = _read_to_end(settings, topic, partition, high)
    if not low <= offset <= high:
        raise PipelineError(
            f"{topic}[{partition}]: got offset {offset}, takes {low} to {high}, which the log holds; "
            "nothing was changed"
        )


def _answered_bounds(settings: Settings, topic: str, partition: int) -> tuple[int, int]:
    from confluent_kafka import KafkaException, TopicPartition
    from confluent_kafka import admin as kafka_admin

    edges: Any = kafka_admin.OffsetSpec  # type: ignore[attr-defined]  # public, without types
    admin = kafka_admin.AdminClient({**settings.kafka_config(), "log_level": 0})
    where = TopicPartition(topic, partition)
    bounds = []
    try:
        for edge in (edges.earliest(), edges.latest()):
            answer = admin.list_offsets({where: edge}, request_timeout=KAFKA_TIMEOUT_S)[where]
            bounds.append(int(answer.result(timeout=2 * KAFKA_TIMEOUT_S).offset))
    except (KafkaException, TimeoutError) as error:
        said = error.args[0].str() if isinstance(error, KafkaException) else "no answer"
        raise PipelineError(
            f"{topic}[{partition}] at {settings.kafka_brokers}: {said}; check KAFKA_BROKERS, the topic and the "
            "partition; nothing was changed"
        ) from error
    return bounds[0], bounds[1]


def _read_to_end(settings: Settings, topic: str, partition: int, known: int) -> int:
    """The end of the log by reading to it: a broker may answer one that falls short of the last batch."""
    from analytics_pipeline.messages import LogPartition
    from analytics_pipeline.sources.kafka import LogReader, Position

    reader = LogReader(settings)
    deadline = time.monotonic() + KAFKA_TIMEOUT_S
    try:
        reader.assign({LogPartition(topic, 0, partition): Position(known)})
        while not reader.at_end and time.monotonic() < deadline:
            for part in reader.read(READ_MESSAGES, READ_BYTES, deadline):
                known = max(known, part.next_offset)
    finally:
        reader.close()
    return known
