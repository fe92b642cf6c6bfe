"""Series that fail on their own: one sensor that says "invalid" ten times a second must not hold back the others.

What is counted is the whole content of a domain partition, however it was split into batches and slices: what this
evaluation saw, and what is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from analytics_pipeline.assets.calculation import Context, Ints, Work
from analytics_pipeline.assets.measurements import table
from analytics_pipeline.assets.measurements.transform import decode_samples
from analytics_pipeline.domains.base import SeriesTuple
from analytics_pipeline.storage.series import NAMES


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Samples of one chunk: the index of their domain partition, their series as index of ``keys``, and who failed."""

    keys: Sequence[SeriesTuple]
    part: Ints
    series: Ints
    failed: npt.NDArray[np.bool_]


@dataclass
class _Counts:
    seen: dict[Any, int] = field(default_factory=dict)
    failed: dict[Any, int] = field(default_factory=dict)

    def add(self, key: Any, seen: int, failed: int) -> None:
        self.seen[key] = self.seen.get(key, 0) + seen
        self.failed[key] = self.failed.get(key, 0) + failed


def excused(context: Context, work: Work, index: int, evaluated: Iterable[Evaluated]) -> tuple[int, int]:
    """(samples, failed samples) that do not count against a domain partition: those of series that fail on their own.

    None where these are more than the domain's share of its series: then it is the domain that fails.
    """
    counts = _Counts()
    for one in evaluated:
        mine = one.part == index
        seen = np.bincount(one.series[mine], minlength=len(one.keys))
        failed = np.bincount(one.series[mine & one.failed], minlength=len(one.keys))
        for at in np.flatnonzero(seen).tolist():
            counts.add(tuple(one.keys[at]), int(seen[at]), int(failed[at]))
    if not work.whole:
        _add_stored(context, work, counts)
    ratio = work.domain.max_failed_ratio
    guilty = [key for key, seen in counts.seen.items() if counts.failed[key] > ratio * seen]
    if len(guilty) == len(counts.seen) or len(guilty) > ratio * len(counts.seen):
        return 0, 0
    return sum(counts.seen[key] for key in guilty), sum(counts.failed[key] for key in guilty)


def _add_stored(context: Context, work: Work, counts: _Counts) -> None:
    """What the domain partition holds, and its dead letters, by series."""
    held = table.count_by_series(context.connection, work)
    if held.height:
        names = context.series.frame(work.domain_id, held["series_id"])
        for *key, rows in held.join(names, on="series_id").select(*NAMES, "rows").rows():
            counts.add(tuple(key), rows, 0)
    rejected = table.read_dead_letters(context.connection, work)
    samples = decode_samples([payload for _, payload in rejected], work.domain)
    series_of = {
        (row, ordinal): samples.keys[series]
        for row, ordinal, series in zip(
            samples.row.tolist(), samples.ordinal.tolist(), samples.series.tolist(), strict=True
        )
    }
    for row, (ordinal, _) in enumerate(rejected):
        if (row, ordinal) in series_of:
            counts.add(tuple(series_of[row, ordinal]), 1, 1)
