"""``python -m benchmarks``: the benchmarks on every server that can be had, as tables and as JSON.

``--long`` runs those that take too long to be run often, ``--server embedded`` or ``--server timescaledb`` is one of
the two servers, ``--only throughput`` one benchmark, ``--quick`` a tenth of everything, to see that it works. The
JSON of a partial or quick run is written only where ``--results`` says.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
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
    linger,
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
    "sparse": sparse.run,
    "domains-live": domains_live.run,
    "domains-throughput": domains_throughput.run,
    "late": late.run,
    "cold-start": cold_start.run,
    "no-statistics": no_statistics.run,
    "master-data": master_data.run,
    "partitions": partitions.run,
    "dead-letters": dead_letters.run,
    "backfill": backfill.run,
}
#: More than ten minutes of a server, or gigabytes of its disk.
LONG: dict[str, Benchmark] = {
    "sparse-dagster": sparse_dagster.run,
    "series": series.run,
    "series-most": series.run_most,
    "linger": linger.run,
    "isolation": isolation.run,
    "history": history.run,
    "memory": memory.run,
}


def main() -> int:
    """Run, print, write. Exit code 1 if a server could not be had or a benchmark failed; a missed goal is none."""
    options = _options()
    console, failed, every = Console(width=TABLE_COLUMNS), False, BENCHMARKS | LONG
    chosen = options.only or (LONG if options.long else BENCHMARKS)
    forget_connections()
    for name in options.server or SERVERS:
        started_at, say = datetime.now(UTC), _teller(name)
        try:
            with running(name, options.state / name) as stack:
                figures: list[Figure] = []
                for benchmark in chosen:
                    say(benchmark)
                    try:
                        figures += every[benchmark](stack, say, options.quick)
                    except Exception as error:  # noqa: BLE001  # the others are measured all the same
                        traceback.print_exc()
                        say(f"{benchmark} failed: {type(error).__name__}: {error}")
                        failed = True
                report = Report(name, stack.version(), figures, started_at)
        except ServerMissingError as error:
            say(str(error))
            failed = True
            continue
        report.show(console)
        if options.results or not (options.only or options.quick):
            written = report.write(options.results or RESULTS_DIR, "-long" if options.long else "")
            say(f"written: {written.name}")
    return int(failed)


def _teller(name: str) -> Say:
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{name} {time.monotonic() - started:6.1f} s  {text}", file=sys.stderr, flush=True)

    return say


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("benchmarks", description=__doc__)
    parser.add_argument("--server", choices=SERVERS, action="append", help="default: all")
    parser.add_argument("--only", choices=sorted(BENCHMARKS | LONG), action="append")
    parser.add_argument("--long", action="store_true", help="the long ones instead of the others")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--state", type=Path, default=ROOT / ".state" / "bench", help="where servers keep data")
    parser.add_argument("--results", type=Path, help="where the JSON goes (default: benchmarks/results)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
