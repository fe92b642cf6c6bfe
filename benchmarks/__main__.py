"""``python -m benchmarks``: every benchmark on every stack that can be had, as tables and as JSON.

``--stack embedded`` or ``--stack timescaledb`` runs one of the two, ``--only throughput`` one benchmark (the
JSON is then written under --results only), ``--quick`` a tenth of the events, to see that it works.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from benchmarks import throughput
from benchmarks.report import RESULTS_DIR, Figure, Report, Say
from benchmarks.stack import ROOT, STACKS, Stack, StackMissingError, running

BENCHMARKS: dict[str, Callable[[Stack, Say, bool], list[Figure]]] = {
    "throughput": throughput.run,
}


def main() -> int:
    """Run, print, write. Exit code 1 if a stack could not be had; a missed goal is no failure."""
    options = _options()
    console, failed = Console(), False

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    for name in options.stack or STACKS:
        started_at = datetime.now(UTC)
        try:
            with running(name, options.state / name) as stack:
                figures: list[Figure] = []
                for benchmark in options.only or BENCHMARKS:
                    say(f"--- {name}: {benchmark}")
                    figures += BENCHMARKS[benchmark](stack, say, options.quick)
                report = Report(name, stack.version(), figures, started_at)
        except StackMissingError as error:
            say(f"{name}: {error}")
            failed = True
            continue
        report.show(console)
        if options.results or not (options.only or options.quick):
            say(f"written: {report.write(options.results or RESULTS_DIR).name}")
    return int(failed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("benchmarks", description=__doc__)
    parser.add_argument("--stack", choices=STACKS, action="append", help="default: all")
    parser.add_argument("--only", choices=sorted(BENCHMARKS), action="append", help="default: all")
    parser.add_argument("--quick", action="store_true", help="a tenth of the events")
    parser.add_argument(
        "--state", type=Path, default=ROOT / ".state" / "bench", help="where servers keep data"
    )
    parser.add_argument("--results", type=Path, help="where the JSON goes (default: benchmarks/results)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
