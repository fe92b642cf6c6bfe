"""What it costs to linger: CPU of all processes but producer and broker, with it and without, and of an idle pipeline.

The database server counts, with every process of it, whoever used them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from analytics_pipeline.storage.engine import connection
from benchmarks.live import BROKER, Live, running_live
from benchmarks.processes import cpu_s_of_trees
from benchmarks.report import Figure, Say
from benchmarks.stack import Stack

RATE_PER_S = 2_000
DURATION_S, DURATION_QUICK_S = 60, 5
IDLE_S, IDLE_QUICK_S = 30, 5
GOAL_TIMES_WITHOUT = 1.6


@dataclass(frozen=True)
class Cores:
    """CPU seconds per second, of everything that the pipeline needs."""

    idle: float
    busy: float


def run(stack: Stack, say: Say, quick: bool = False) -> list[Figure]:
    """The stack as it is, then with ``LINGER_S=0``."""
    found = {}
    for linger, settings in ((True, {}), (False, {"LINGER_S": "0"})):
        with running_live(stack, "linger", say, settings=settings) as live:
            found[linger] = cores = _measure(live, quick)
            say(f"{'lingering' if linger else 'LINGER_S=0'}: {cores.busy:.2f} cores, idle {cores.idle:.2f}")
    rate = f"{RATE_PER_S:,} events/s"
    return [
        Figure("CPU, idle", found[True].idle, "cores"),
        Figure("CPU, idle, LINGER_S=0", found[False].idle, "cores"),
        Figure(f"CPU, {rate}", found[True].busy, "cores"),
        Figure(f"CPU, {rate}, LINGER_S=0", found[False].busy, "cores"),
        Figure(
            f"CPU, {rate}, lingering / not",
            found[True].busy / found[False].busy,
            "x",
            GOAL_TIMES_WITHOUT,
            "at_most",
        ),
    ]


def _measure(live: Live, quick: bool) -> Cores:
    pids = [one.pid for name, one in live.supervisor.named.items() if name != BROKER] + [_database_pid(live)]
    began, cpu_s = time.monotonic(), cpu_s_of_trees(pids)
    time.sleep(IDLE_QUICK_S if quick else IDLE_S)
    idle = (cpu_s_of_trees(pids) - cpu_s) / (time.monotonic() - began)
    began, cpu_s = time.monotonic(), cpu_s_of_trees(pids)
    live.phase(RATE_PER_S, DURATION_QUICK_S if quick else DURATION_S)
    live.settle()
    return Cores(idle, (cpu_s_of_trees(pids) - cpu_s) / (time.monotonic() - began))


def _database_pid(live: Live) -> int:
    """Of the server's first process, the parent of every backend. The server is on this machine."""
    with connection(live.engine) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (backend,) = cursor.fetchone()
    return int(Path(f"/proc/{backend}/stat").read_text().rpartition(")")[2].split()[1])
