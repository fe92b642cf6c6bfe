"""``python -m benchmarks``: every benchmark on every server that can be had, as tables and as JSON.

``--server embedded`` or ``--server timescaledb`` runs one of the two, ``--only throughput`` one benchmark,
``--quick`` a tenth of everything, to see that it works. The JSON of a partial or quick run is written only
where ``--results`` says.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from analytics_pipeline.embedded import forget_connections
from benchmarks import (
    backfill,
    cold_start,
    dead_letters,
    domains_live,
    domains_throughput,
    freshness,
    history,
    isolation,
    late,
    master_data,
    memory,
    no_statistics,
    partitions,
    series,
    sparse,
    sparse_dagster,
    throughput,
)
from benchmarks.report import RESULTS_DIR, Figure, Report, Say
from benchmarks.stack import ROOT, SERVERS, ServerMissingError, Stack, running

#: Wide enough for the longest name, wherever the output goes.
TABLE_COLUMNS = 100
Benchmark = Callable[[Stack, Say, bool], list[Figure]]
BENCHMARKS: dict[str, Benchmark] = {
    "throughput": throughput.run,
    "freshness": freshness.run,
    "isolation": isolation.run,
    "history": history.run,
    "backfill": backfill.run,
    "memory": memory.run,
    "sparse": sparse.run,
    "sparse-dagster": sparse_dagster.run,
    "domains-live": domains_live.run,
    "domains-throughput": domains_throughput.run,
    "series": series.run,
    "late": late.run,
    "cold-start": cold_start.run,
    "no-statistics": no_statistics.run,
    "master-data": master_data.run,
    "partitions": partitions.run,
    "dead-letters": dead_letters.run,
}


def main() -> int:
    """Run, print, write. Exit code 1 if a server could not be had; a missed goal is no failure."""
    options = _options()
    console, failed = Console(width=TABLE_COLUMNS), False
    forget_connections()
    for name in options.server or SERVERS:
        started_at, say = datetime.now(UTC), _teller(name)
        try:
            with running(name, options.state / name) as stack:
                figures: list[Figure] = []
                for benchmark in options.only or BENCHMARKS:
                    say(benchmark)
                    figures += BENCHMARKS[benchmark](stack, say, options.quick)
                report = Report(name, stack.version(), figures, started_at)
        except ServerMissingError as error:
            say(str(error))
            failed = True
            continue
        report.show(console)
        if options.results or not (options.only or options.quick):
            say(f"written: {report.write(options.results or RESULTS_DIR).name}")
    return int(failed)


def _teller(name: str) -> Say:
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{name} {time.monotonic() - started:6.1f} s  {text}", file=sys.stderr, flush=True)

    return say


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("benchmarks", description=__doc__)
    parser.add_argument("--server", choices=SERVERS, action="append", help="default: all")
    parser.add_argument("--only", choices=sorted(BENCHMARKS), action="append", help="default: all")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--state", type=Path, default=ROOT / ".state" / "bench", help="where servers keep data")
    parser.add_argument("--results", type=Path, help="where the JSON goes (default: benchmarks/results)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
