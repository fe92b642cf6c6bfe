"""Plays any sequence of steps against real servers, while they fail, and keeps the books of what was sent and read.

One step is what one actor does: a producer sends, the sensor ticks, a worker computes, somebody edits limits, rebuilds
an hour, runs retention or makes a topic again, a server or a domain begins to fail. A step that meets a fault may raise
whatever it likes, except that it found a bug of its own; the next ones go on, as the next tick and the next run do.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from confluent_kafka import KafkaException, TopicPartition

from analytics_pipeline.assets.raw_events.rebuild import rebuild_raw
from analytics_pipeline.records import DERIVED, HOUR, RAW_EVENTS, DerivedName, to_us
from analytics_pipeline.storage.engine import connection
from analytics_pipeline.storage.pending_work import actionable_hours
from analytics_pipeline.storage.retention import expire, floor_hour
from analytics_pipeline_tests.conftest import KafkaServer
from analytics_pipeline_tests.domains import topic_of
from analytics_pipeline_tests.domains.intermittent import PLACES, Switch
from analytics_pipeline_tests.environments import Environment, Sent, create_topics
from analytics_pipeline_tests.fault_points import Fault, FaultPoint, InterruptedByTestError, faulty_engine
from analytics_pipeline_tests.pipeline import MAX_ROUNDS, Pipeline
from analytics_pipeline_tests.scenario_messages import RETENTION_DAYS, elements, payloads, where
from analytics_pipeline_tests.stored_columns import Expected

#: So that a window of two hours begins before the stream, and one inside of it.
START = datetime(2026, 3, 3, 1, tzinfo=UTC)
HOURS = 4
PARTITIONS = 2
SERIES = [("m-1", "s-1"), ("m-1", "s-2"), ("m-2", "s-1")]
#: Fractions that binary cannot hold, zeros of both signs, the very large and the very small.
VALUES = (0.1, 0.2, 0.3, -7.25, 0.0, -0.0, 1e9 + 0.1, 3e-7)
GAINS = (1.0, 1.02, -0.5)
OFFSETS = (0.0, -0.3)
LIMITS = (None, 0.15, 19.5, 20.5, 45.0)

#: What may happen, as often as it is named.
STEPS = (
    *("send",) * 7,
    *("tick",) * 8,
    *("settle",) * 5,
    *("derive",) * 3,
    *("fail_database",) * 7,
    *("fail_broker",) * 3,
    *("edit_limits",) * 2,
    *("calibrate",) * 2,
    *("rebuild_raw",) * 2,
    *("rebuild_derived",) * 2,
    *("break_domain",) * 2,
    *("run_retention",) * 2,
    "make_topic_again",
    "expire_messages",
    "renew",
    "end_sessions",
)
_KINDS = {"database": ("lost", "lost", "lost", "deadlock", "canceled", "interrupted"),
          "broker": ("error", "error", "silence", "partition error", "interrupted")}  # fmt: skip


class Servers:
    """What all examples are played on. No dataclass: hypothesis would print all of it."""

    def __init__(self, env: Environment, kafka: KafkaServer, switch: Switch, broker: FaultPoint) -> None:
        self.env, self.kafka, self.switch, self.broker = env, kafka, switch, broker


class Scenario:
    """One example: its faults, and what should have come of it.

    Attributes:
        observer: reads the same database through connections that do not fail.
        now: the time of each tick. It moves with the recorded retention floor.
        arrived: which messages were read, and when.
        history: what happened, a line per step.
        failed_runs: what a person's runs could not compute.
    """

    def __init__(self, servers: Servers) -> None:
        self.env, self.kafka, self.switch, self.broker = servers.env, servers.kafka, servers.switch, servers.broker
        self.broker.heal()
        self.broker.happened.clear()
        self.switch.places = frozenset()
        self.database = FaultPoint()
        self.engine = faulty_engine(self.env.settings, self.database)
        self.observer = self.env.pipeline
        self.now = START + timedelta(days=RETENTION_DAYS)
        self.arrived: dict[tuple[str, int, int, int], datetime] = {}
        self.epochs = dict.fromkeys(self.env.topics, 1)
        self.history: list[str] = []
        self.failed_runs: set[tuple[DerivedName, datetime, str]] = set()
        self.pipeline = self._new_pipeline()
        for topic, domain in sorted(self.env.topics.items()):
            self._send(random.Random(domain), topic, domain)

    def close(self) -> None:
        self.heal()
        self.pipeline.close()
        self.engine.dispose()

    def _new_pipeline(self) -> Pipeline:
        pipeline = Pipeline(self.env.settings, self.engine, self.observer.registry)
        pipeline.drain._clock = lambda: 0.0  # a batch arrives at the time of its tick
        return pipeline

    # ------------------------------------------------------------------ steps

    def step(self, name: str, rng: random.Random) -> None:
        """One step, whatever a fault makes of it."""
        with self._may_fail(name):
            getattr(self, name)(rng)

    @contextmanager
    def _may_fail(self, name: str) -> Iterator[None]:
        self.history.append(name)
        try:
            yield
        except AssertionError:
            raise
        except (Exception, InterruptedByTestError) as error:
            if not (self.database.happened or self.broker.happened):
                raise
            self.history[-1] += f" -> {type(error).__name__}: {str(error)[:80]}"
        finally:
            self._note_arrivals()
            self.history[-1] += "".join(f"; {one}" for one in (*self.database.happened, *self.broker.happened))
            self.database.happened.clear()
            self.broker.happened.clear()

    def send(self, rng: random.Random) -> None:
        """To some topics: a run of readings of one series at a steady pace, or a handful of odd ones."""
        topics = sorted(self.env.topics.items())
        for topic, domain in rng.sample(topics, rng.randrange(1, len(topics) + 1)):
            self._send(rng, topic, domain)

    def _send(self, rng: random.Random, topic: str, domain: str) -> None:
        if rng.random() < 0.3:
            moments = [START + timedelta(minutes=rng.randrange(HOURS * 60)) for _ in range(rng.randrange(1, 6))]
            samples = [(moment, rng.choice(VALUES)) for moment in moments]
        else:
            begin, step_s = rng.randrange(HOURS * 3600), rng.choice([7, 30, 60, 61])
            times = [START + timedelta(seconds=begin + step_s * at) for at in range(rng.randrange(1, 50))]
            samples = [(time, 20 + rng.random() + 50 * (rng.random() < 0.05)) for time in times]
        samples = [one for one in samples if one[0] < START + HOURS * HOUR]
        values = payloads(rng, domain, samples, rng.choice(SERIES))
        if rng.random() < 0.2:
            values += rng.sample(values, min(3, len(values)))  # sent twice
        self.env.epoch = self.epochs[topic]
        kafka_ms = int((START + HOURS * HOUR).timestamp() * 1000) + rng.randrange(3)
        self.env.send(values, rng.randrange(PARTITIONS), topic=topic, timestamp=kafka_ms)

    def tick(self, rng: random.Random) -> None:
        self.pipeline.tick(self.now)

    def settle(self, rng: random.Random) -> None:
        """What the sensor asks for: some rounds of pending work, hour by hour or several together."""
        for _ in range(rng.randrange(1, 4)):
            self._derive_pending(together=rng.random() < 0.5, live_from=rng.choice([START, self.now]))

    def derive(self, rng: random.Random) -> None:
        """One run of one asset."""
        hours = self._some_hours(rng)
        self.pipeline.deriver.derive_hours(rng.choice(DERIVED), hours, "incremental", "test", now=self.now)

    def rebuild_derived(self, rng: random.Random) -> None:
        """A person materializes one asset, of all domains or of one."""
        domains = rng.choice([None, [rng.choice(sorted(self.env.topics.values()))]])
        hours = self._some_hours(rng)
        asset = rng.choice(DERIVED)
        done = self.pipeline.deriver.derive_hours(asset, hours, "full", "by hand", domains=domains)
        self.failed_runs |= {(asset, one.hour, one.domain) for one in done.errors}

    def rebuild_raw(self, rng: random.Random) -> None:
        self.rebuild_raw_hour(rng.choice(self.kept_hours()))

    def edit_limits(self, rng: random.Random) -> None:
        """A person edits limits: of a series, of all of a machine, or of all."""
        machine, sensor = rng.choice([*SERIES, ("m-1", None), (None, None)])
        begin = rng.choice(["-infinity", START + timedelta(minutes=rng.randrange(HOURS * 60))])
        low, high = rng.choice([(lsl, usl) for lsl in LIMITS for usl in LIMITS if (lsl or 0) < (usl or 0)])
        with connection(self.engine) as conn, conn.cursor() as cursor:
            what = rng.randrange(6)
            if what == 0:
                cursor.execute("DELETE FROM analytics_spec_limits WHERE machine_id = %s", (machine,))
            elif what == 1:
                cursor.execute("UPDATE analytics_spec_limits SET lsl = %s, usl = %s", (low, high))
            elif what == 2 and rng.random() < 0.5:
                cursor.execute("TRUNCATE analytics_spec_limits")
            else:
                cursor.execute(
                    "INSERT INTO analytics_spec_limits (machine_id, sensor_id, metric, lsl, usl, valid_from) "
                    "VALUES (%s, %s, 'temp', %s, %s, %s) ON CONFLICT DO NOTHING",
                    (machine, sensor, low, high, begin),
                )
            conn.commit()

    def calibrate(self, rng: random.Random) -> None:
        """A person calibrates a sensor, or all of a machine, corrects that, or takes it back."""
        machine, sensor = rng.choice([*SERIES, ("m-1", None)])
        begin = rng.choice(["-infinity", START + timedelta(minutes=rng.randrange(HOURS * 60))])
        gain, offset = rng.choice(GAINS), rng.choice(OFFSETS)
        with connection(self.engine) as conn, conn.cursor() as cursor:
            what = rng.randrange(4)
            if what == 0:
                cursor.execute("DELETE FROM analytics_calibration WHERE machine_id = %s", (machine,))
            elif what == 1:
                cursor.execute("UPDATE analytics_calibration SET gain = %s WHERE machine_id = %s", (gain, machine))
            else:
                cursor.execute(
                    'INSERT INTO analytics_calibration (machine_id, sensor_id, metric, gain, "offset", valid_from) '
                    "VALUES (%s, %s, 'temp', %s, %s, %s) ON CONFLICT DO NOTHING",
                    (machine, sensor, gain, offset, begin),
                )
            conn.commit()

    def break_domain(self, rng: random.Random) -> None:
        """One domain begins to raise, or stops."""
        self.switch.places = frozenset(place for place in PLACES if rng.random() < 0.4)

    def run_retention(self, rng: random.Random) -> None:
        """An hour or two go. Not while they have work to do: what is left of them is the history of later ones."""
        self.heal()
        self.mend_domain()
        if not self._is_settled() or self.floor > START + HOUR:
            return
        if rng.random() < 0.5:
            self.fail_database(rng)
        now = self.now + HOUR * rng.randrange(1, 3)
        try:
            self._expire(now)
        finally:
            recorded = self.observer.query("SELECT max(floor_hour), count(*) FROM retention_floor")[0]
            if recorded[0] == floor_hour(now, RETENTION_DAYS):
                self.now = now

    def make_topic_again(self, rng: random.Random) -> None:
        """A topic is deleted and made anew under its name; what was not read is gone."""
        topic = rng.choice(sorted(self.env.topics))
        self.heal()  # the broker's own clients of the test must get through
        self.pipeline.close()  # the embedded broker and librdkafka: see test_epochs_and_gaps.recreate
        admin = self.kafka.admin()
        admin.delete_topics([topic])[topic].result(timeout=20)
        self._create(topic)
        [(known,)] = self.observer.query("SELECT coalesce(max(epoch), 0) FROM kafka_log WHERE topic = %s", topic)
        self.env.sent = [one for one in self.env.sent if one.topic != topic or where(one) in self.arrived]
        self.epochs[topic] = known + 1
        self.pipeline = self._new_pipeline()

    def _create(self, topic: str) -> None:
        for _ in range(200):
            try:
                create_topics(self.env.settings.kafka_brokers, [topic], PARTITIONS)
                return
            except KafkaException:  # the deletion continues in the background
                continue
        raise AssertionError(f"{topic} cannot be made again")

    def expire_messages(self, rng: random.Random) -> None:
        """Kafka's own retention takes the oldest messages of a partition, read or not."""
        if self.kafka.embedded is not None:
            return  # it cannot delete records
        waiting = [one for one in self.env.sent if where(one) not in self.arrived]
        if not waiting:
            return
        last = rng.choice(waiting)
        self.heal()
        self.pipeline.close()  # it would have fetched ahead what is about to expire
        admin = self.kafka.admin()
        before = TopicPartition(last.topic, last.partition, last.offset)
        for future in admin.delete_records([before]).values():
            future.result(timeout=20)
        gone = {one for one in waiting if one[:3] == last[:3] and one.offset < last.offset}
        self.env.sent = [one for one in self.env.sent if one not in gone]
        self.pipeline = self._new_pipeline()

    def renew(self, rng: random.Random) -> None:
        """Another process takes over: nothing but the servers remembers anything."""
        self.pipeline.close()
        self.pipeline = self._new_pipeline()

    def end_sessions(self, rng: random.Random) -> None:
        """Every session of the pipeline ends while it is idle, as when a server restarts."""
        self.observer.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid()"
        )

    def fail_database(self, rng: random.Random) -> None:
        self.database.arm(_fault(rng, "database"))

    def fail_broker(self, rng: random.Random) -> None:
        self.broker.arm(_fault(rng, "broker"))

    # ------------------------------------------------------------------ the end

    def heal(self) -> None:
        self.database.heal()
        self.broker.heal()

    def drain_all(self) -> None:
        """Everything that was sent is read."""
        for _ in range(MAX_ROUNDS * 4):
            self.pipeline.tick(self.now)
            self._note_arrivals()
            if all(where(one) in self.arrived for one in self.env.sent):
                return
        waiting = [one for one in self.env.sent if where(one) not in self.arrived]
        raise AssertionError(f"not read: {waiting[:5]}")

    def settle_all(self, domains: Collection[str]) -> None:
        """Nothing is left to do for some domains; what failed does not rest."""
        for _ in range(MAX_ROUNDS):
            with connection(self.observer.engine) as conn, conn.cursor() as cursor:
                cursor.execute("UPDATE partition_failure SET next_try_at = now()")
                conn.commit()
                todo = actionable_hours(conn, domains=sorted(domains))
            if not todo:
                return
            self._derive_pending(together=False, live_from=self.now)
        raise AssertionError(f"still pending after {MAX_ROUNDS} rounds: {todo}")

    def _repeat_failed_runs(self) -> None:
        """A person's run that failed is started again by a person: nothing pending would bring it back."""
        for asset, hour, domain in sorted(self.failed_runs):
            if hour >= self.floor:
                self.pipeline.deriver.derive_hours(asset, [hour], "full", "by hand", domains=[domain])
        self.failed_runs.clear()

    def mend_domain(self) -> None:
        """The domain stops to raise, and a person rebuilds the hours that it failed in."""
        self.switch.places = frozenset()
        failed = "SELECT DISTINCT hour FROM dead_letters WHERE stage = %s AND reason = 'domain_error' ORDER BY 1"
        for (hour,) in self.observer.query(failed, RAW_EVENTS):
            self.rebuild_raw_hour(hour)
        for (hour,) in self.observer.query(failed, "normalized_measurements"):
            self.pipeline.deriver.derive_hours("normalized_measurements", [hour], "full", "by hand")
        self.settle_all(self.env.topics.values())
        self._repeat_failed_runs()
        self.settle_all(self.env.topics.values())

    def finish_retention(self) -> None:
        """A retention that was cut short is run again, as every night."""
        if self.floor > START:
            self._expire(self.now)

    @property
    def floor(self) -> datetime:
        """The first hour that is kept."""
        return self.now - timedelta(days=RETENTION_DAYS)

    def expected(self, domain: str) -> Expected:
        """What the tables should say of a domain whose code does not raise."""
        topic = topic_of(self.env, domain)
        parts = [
            part
            for one in self.env.sent
            if one.topic == topic and where(one) in self.arrived
            for part in elements(one, domain, self.arrived[where(one)])
        ]
        return Expected(domain, parts, to_us(self.floor))

    def read(self) -> list[Sent]:
        return [one for one in self.env.sent if where(one) in self.arrived]

    # ------------------------------------------------------------------ hands

    def kept_hours(self) -> list[datetime]:
        return [START + HOUR * at for at in range(HOURS) if START + HOUR * at >= self.floor]

    def _some_hours(self, rng: random.Random) -> list[datetime]:
        hours = self.kept_hours()
        return rng.sample(hours, rng.randrange(1, len(hours) + 1))

    def _derive_pending(self, *, together: bool, live_from: datetime) -> None:
        with connection(self.engine) as conn:
            todo = actionable_hours(conn)
        derive = self.pipeline.deriver.derive_hours
        if together:
            for asset in DERIVED:
                if hours := [one.hour for one in todo if asset in one.assets]:
                    derive(asset, hours, "incremental", "test", now=live_from)
            return
        for one in todo:
            for asset in one.assets:
                derive(asset, [one.hour], "incremental", "test", now=live_from)

    def rebuild_raw_hour(self, hour: datetime) -> None:
        rebuild_raw(self.env.settings, self.engine, self.observer.registry, hour, "by hand")

    def _expire(self, now: datetime) -> None:
        with connection(self.engine) as conn:
            look_back = max(domain.history for domain in self.observer.registry)
            expire(conn, self.observer.registry.by_name, now, RETENTION_DAYS, look_back=look_back)

    def _is_settled(self) -> bool:
        [(left,)] = self.observer.query(
            "SELECT (SELECT count(*) FROM pending_work) + (SELECT count(*) FROM partition_failure) "
            "+ (SELECT count(*) FROM partition_state WHERE status <> 'open') "
            "+ (SELECT count(*) FROM dead_letters WHERE reason = 'domain_error')"
        )
        return not left

    def _note_arrivals(self) -> None:
        """What is below the stored offsets now and was not before came with this step."""
        stored = {
            tuple(row[:3]): row[3]
            for row in self.observer.query("SELECT topic, epoch, partition, next_offset FROM kafka_offset")
        }
        for one in self.env.sent:
            if one.offset < stored.get(where(one)[:3], 0):
                self.arrived.setdefault(where(one), self.now)


def _fault(rng: random.Random, where: str) -> Fault:
    kind = rng.choice(_KINDS[where])
    most = rng.choice([3, 30, 100] if where == "database" else [3, 10])
    return Fault(
        kind=kind,
        after_calls=rng.randrange(most),
        moment="after" if rng.random() < 0.5 else "before",
        lasts=rng.choice([1, 1, 1, 2, 5] if kind != "canceled" else [1]),
    )
