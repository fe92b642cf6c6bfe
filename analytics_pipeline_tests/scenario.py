"""Plays any sequence of steps against real servers, while they fail, and keeps the books of what was sent and read.

One step is what one actor does: a producer sends, the sensor ticks, a worker computes, somebody edits limits, rebuilds
an hour, runs retention or makes a topic again, a server or a domain begins to fail. A step that meets a fault may raise
whatever it likes, except that it found a bug of its own; the next ones go on, as the next tick and the next run do.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from confluent_kafka import KafkaException, TopicPartition

from analytics_pipeline.assets.derive import Deriver
from analytics_pipeline.records import DERIVED, HOUR, to_us
from analytics_pipeline_tests.domains import topic_of
from analytics_pipeline_tests.environments import create_topics
from analytics_pipeline_tests.pipeline import MAX_ROUNDS
from analytics_pipeline_tests.scenario_messages import SERIES, elements, payloads, where
from analytics_pipeline_tests.scenario_operators import Operators, fault
from analytics_pipeline_tests.scenario_stage import HOURS, START, Servers
from analytics_pipeline_tests.stored_columns import Expected

PARTITIONS = 2
#: Fractions that binary cannot hold, zeros of both signs, the very large and the very small.
VALUES = (0.1, 0.2, 0.3, -7.25, 0.0, -0.0, 1e9 + 0.1, 3e-7)

#: What may happen, as often as it is named.
STEPS = (
    *("send",) * 7,
    *("tick",) * 8,
    *("settle",) * 5,
    *("derive",) * 3,
    *("two_at_once",) * 3,
    *("fail_database",) * 7,
    *("fail_broker",) * 3,
    *("edit_limits",) * 2,
    *("calibrate",) * 2,
    *("rebuild_raw",) * 2,
    *("rebuild_derived",) * 2,
    *("break_domain",) * 2,
    *("run_retention",) * 2,
    *("enable_domains",) * 2,
    *("release_gate",) * 2,
    *("retry_failed",) * 2,
    "change_windows",
    "accept_gaps",
    "make_topic_again",
    "expire_messages",
    "renew",
    "end_sessions",
)


class Scenario(Operators):
    """One example: producers, the sensor, workers and servers, beside people; and what should have come of it."""

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        for topic, domain in sorted(self.env.topics.items()):
            self._send(random.Random(domain), topic, domain)

    # ------------------------------------------------------------------ the pipeline

    def tick(self, rng: random.Random) -> None:
        self.pipeline.tick(self.now)

    def settle(self, rng: random.Random) -> None:
        """What the sensor asks for: some rounds of pending work, hour by hour or several together."""
        self._settle(self.pipeline.deriver, rng, rng.randrange(1, 4))

    def _settle(self, deriver: Deriver, rng: random.Random, rounds: int) -> None:
        for _ in range(rounds):
            self.derive_pending(deriver, together=rng.random() < 0.5, live_from=rng.choice([START, self.now]))

    def derive(self, rng: random.Random) -> None:
        """One run of one asset."""
        hours = self.some_hours(rng)
        self.pipeline.deriver.derive_hours(rng.choice(DERIVED), hours, "incremental", "test", now=self.now)

    def two_at_once(self, rng: random.Random) -> None:
        """Two processes compute at once, some of the same hours; both have ended when this returns."""
        worker = Deriver(self.pipeline.settings, self.worker, self.pipeline.registry)
        with ThreadPoolExecutor(2) as pool:
            futures = [
                pool.submit(self._work, deriver, random.Random(rng.random()))
                for deriver in (self.pipeline.deriver, worker)
            ]
        errors = [error for future in futures if (error := future.exception()) is not None]
        for error in sorted(errors, key=lambda one: not isinstance(one, AssertionError)):
            raise error

    def _work(self, deriver: Deriver, rng: random.Random) -> None:
        for _ in range(rng.randrange(1, 3)):
            what = rng.random()
            if what < 0.6:
                self._settle(deriver, rng, 1)
            elif what < 0.8:
                self.run_by_hand(deriver, rng.choice(DERIVED), self.some_hours(rng))
            elif deriver is self.pipeline.deriver:
                self.pipeline.tick(self.now)

    # ------------------------------------------------------------------ producers and servers

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

    def make_topic_again(self, rng: random.Random) -> None:
        """A topic is deleted and made anew under its name; what was not read is gone."""
        topic = rng.choice(sorted(self.env.topics))
        self.heal()  # the broker's own clients of the test must get through
        self.pipeline.close()  # the embedded broker and librdkafka: see test_epochs.recreate
        admin = self.kafka.admin()
        admin.delete_topics([topic])[topic].result(timeout=20)
        self._create(topic)
        [(known,)] = self.observer.query("SELECT coalesce(max(epoch), 0) FROM kafka_log WHERE topic = %s", topic)
        self.env.sent = [one for one in self.env.sent if one.topic != topic or where(one) in self.arrived]
        self.epochs[topic] = known + 1
        self.restart()

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
        self.restart()

    def renew(self, rng: random.Random) -> None:
        """Another process takes over: nothing but the servers remembers anything."""
        self.restart()

    def end_sessions(self, rng: random.Random) -> None:
        """Every session of the pipeline ends while it is idle, as when a server restarts."""
        self.observer.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid()"
        )

    def fail_database(self, rng: random.Random) -> None:
        self.database.arm(fault(rng, "database"))

    def fail_broker(self, rng: random.Random) -> None:
        self.broker.arm(fault(rng, "broker"))

    # ------------------------------------------------------------------ the end

    def drain_all(self) -> None:
        """Everything that was sent is read."""
        for _ in range(MAX_ROUNDS * 4):
            self.pipeline.tick(self.now)
            self._note_arrivals()
            if all(where(one) in self.arrived for one in self.env.sent):
                return
        waiting = [one for one in self.env.sent if where(one) not in self.arrived]
        raise AssertionError(f"not read: {waiting[:5]}")

    def expected(self, domain: str) -> Expected:
        """What the tables should say of a domain whose code does not raise."""
        topic = topic_of(self.env, domain)
        parts = [
            part
            for one in self.env.sent
            if one.topic == topic and where(one) in self.arrived
            for part in elements(one, domain, self.arrived[where(one)])
        ]
        return Expected(domain, parts, to_us(self.floor), to_us(self.known_from))
