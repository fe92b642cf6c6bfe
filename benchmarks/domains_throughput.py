"""A backlog of 400,000 messages over ten topics, each of a domain of its own, beside the same over one topic.

All five assets, as in ``throughput``. The series are the same, shared out among the topics.
"""

from __future__ import annotations

from statistics import median

from benchmarks.copies import DOMAINS, topic_name
from benchmarks.kafka import create_topic, produce_all
from benchmarks.pipeline import WARM_TOPIC, migrated, warm_up_stream
from benchmarks.report import Figure, Say, memory_figure
from benchmarks.stack import Stack
from benchmarks.throughput import EVENTS, EVENTS_QUICK, ROUNDS, Round, all_assets, backlog

GOAL_SHARE_OF_ONE_TOPIC = 0.8


def run(stack: Stack, say: Say, quick: bool = False) -> list[Figure]:
    """One topic, then ten."""
    count, rounds = (EVENTS_QUICK, 1) if quick else (EVENTS, ROUNDS)
    one, ten = (_measure(stack, count, rounds, domains) for domains in (1, DOMAINS))
    rates = [count / median(one.duration_s for one in found) for found in (one, ten)]
    say(f"one topic: {rates[0]:,.0f} events/s, {DOMAINS} topics: {rates[1]:,.0f} events/s")
    dones = [done for done in ten if done.derive]
    return [
        Figure("all five assets, one topic", rates[0], "events/s", detail={"events": count}),
        Figure(f"all five assets, {DOMAINS} topics", rates[1], "events/s", detail={"events": count}),
        Figure(f"all five assets, {DOMAINS} topics / one", rates[1] / rates[0], "x", GOAL_SHARE_OF_ONE_TOPIC),
        memory_figure(f"drain, {DOMAINS} topics", max(done.drain.peak_bytes for done in dones)),
        memory_figure(
            f"derive worker, {DOMAINS} topics", max(done.derive.peak_bytes for done in dones if done.derive)
        ),
    ]


def _measure(stack: Stack, count: int, rounds: int, domains: int) -> list[Round]:
    topics = [topic_name(number) for number in range(domains)]
    with stack.broker() as brokers, stack.database("warm_up") as warm_database:
        for topic in (WARM_TOPIC, *topics[1:]):
            create_topic(brokers, topic)
        produce_all(brokers, warm_up_stream(), WARM_TOPIC)
        produce_all(brokers, backlog(count), *topics)
        return all_assets(stack, brokers, migrated(stack, warm_database, brokers), count, rounds, domains)
