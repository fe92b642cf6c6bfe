"""What was measured, as a table for people and as JSON for comparison. Measures nothing."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

#: Whose versions the figures depend on most.
PACKAGES = (
    "confluent-kafka",
    "dagster",
    "great-expectations",
    "msgspec",
    "numpy",
    "pandas",
    "polars",
    "psycopg2-binary",
)
RESULTS_DIR = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Figure:
    """One figure. ``goal`` is the least (``at_least``) or the most (``at_most``) that it should be."""

    name: str
    value: float
    unit: str
    goal: float | None = None
    direction: Literal["at_least", "at_most"] = "at_least"
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where there is none."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.direction == "at_least" else self.value <= self.goal


#: The most memory that any worker or drain may take, in whatever benchmark.
GOAL_PEAK_GIB = 1.0


def memory_figure(who: str, peak_bytes: int, detail: dict[str, Any] | None = None) -> Figure:
    """The most memory that a process ever had resident."""
    name = f"peak memory, {who}"
    return Figure(name, peak_bytes / (1 << 30), "GiB", GOAL_PEAK_GIB, "at_most", detail or {})


def commit() -> dict[str, Any]:
    """What was measured: the commit of the checkout, and whether files differ from it."""
    git = ("git", "-C", str(Path(__file__).resolve().parent))
    try:
        found = subprocess.run((*git, "rev-parse", "HEAD"), capture_output=True, text=True, check=True)
        changes = subprocess.run(
            (*git, "status", "--porcelain", "--", ":/", ":(exclude,top)benchmarks/results"),
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": found.stdout.strip(), "dirty": bool(changes.stdout.strip())}


@dataclass(frozen=True)
class Report:
    """Every figure of one stack from one run."""

    stack: str
    database: str
    figures: Sequence[Figure]
    started_at: datetime

    def write(self, folder: Path = RESULTS_DIR, suffix: str = "") -> Path:
        """JSON, one file a stack; the newest run replaces the one before."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.stack}{suffix}.json"
        content = {
            "stack": self.stack,
            "database": self.database,
            "measured": commit(),
            "machine": machine(),
            "started_at": self.started_at.astimezone(UTC).isoformat(timespec="seconds"),
            "figures": [{**asdict(figure), "met": figure.met} for figure in self.figures],
        }
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return path

    def show(self, console: Console) -> None:
        """The table."""
        console.print(f"\n[bold]{self.stack}[/bold]: {self.database}")
        table = Table()
        for heading in ("what", "figure", "unit", "goal", ""):
            table.add_column(heading, justify="right" if heading in ("figure", "goal") else "left")
        for figure in self.figures:
            table.add_row(figure.name, number(figure.value), figure.unit, *_goal(figure))
        console.print(table)


def _goal(figure: Figure) -> tuple[str, str]:
    if figure.goal is None:
        return "", ""
    sign = "≥" if figure.direction == "at_least" else "≤"
    return f"{sign} {number(figure.goal)}", "met" if figure.met else "[bold]missed[/bold]"


def number(value: float) -> str:
    """Three significant digits or whole thousands, whichever a person reads at a glance."""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"


def machine() -> dict[str, Any]:
    """What it ran on, without a name."""
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: version(name) for name in PACKAGES},
    }


Say = Callable[[str], None]
