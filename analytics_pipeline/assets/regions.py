"""Arithmetic of regions: joined, widened to windows, subtracted. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import polars as pl

from analytics_pipeline.records import Region

Bools = npt.NDArray[np.bool_]


def joined(regions: Iterable[Region]) -> list[Region]:
    """The same rows in as few regions as can be: neighbours of one domain and the same series are one."""
    found: list[Region] = []
    filled = (one for one in regions if one.series != ())
    for region in sorted(filled, key=lambda one: (one.domain_id, one.series or (), one.begins_us)):
        last = found[-1] if found else None
        same = last and (last.domain_id, last.series) == (region.domain_id, region.series)
        if last and same and region.begins_us <= last.ends_us:
            found[-1] = Region(last.domain_id, last.begins_us, max(last.ends_us, region.ends_us), last.series)
        else:
            found.append(region)
    return found


def widened(regions: Iterable[Region], size_us: int) -> list[Region]:
    """The windows of one size that hold something of the regions."""
    return joined(
        Region(
            one.domain_id,
            one.begins_us // size_us * size_us,
            -(-one.ends_us // size_us) * size_us,
            one.series,
        )
        for one in regions
    )


def disjoint(regions: Iterable[Region]) -> list[Region]:
    """The same rows, each in one region only: whatever is read or merged by region must come once.

    What is in a region of all series is in no region of some; where regions of some series overlap, one region
    names the series of both.
    """
    every = joined(regions)
    wide = [one for one in every if one.series is None]
    some = [
        piece
        for one in every
        if one.series is not None
        for piece in _without(one, [w for w in wide if w.domain_id == one.domain_id])
    ]
    return wide + _united(some)


def _united(regions: Sequence[Region]) -> list[Region]:
    """Regions of some series, cut where another one begins or ends, so that those of one span are one."""
    found: list[Region] = []
    for domain_id in sorted({one.domain_id for one in regions}):
        mine = sorted((r for r in regions if r.domain_id == domain_id), key=lambda one: one.begins_us)
        edges = sorted({edge for one in mine for edge in (one.begins_us, one.ends_us)})
        active: list[Region] = []
        at = 0
        for begins, ends in pairwise(edges):
            active = [one for one in active if one.ends_us > begins]
            while at < len(mine) and mine[at].begins_us == begins:
                active.append(mine[at])
                at += 1
            if active:
                found.append(Region(domain_id, begins, ends, _series_of(active)))
    return joined(found)


def _series_of(regions: Sequence[Region]) -> tuple[int, ...]:
    if len(regions) == 1:
        return regions[0].series or ()
    return tuple(sorted({number for one in regions for number in one.series or ()}))


def subtracted(regions: Iterable[Region], known: Sequence[Region]) -> list[Region]:
    """What is left of regions without those of the same domain and series."""
    return [
        piece
        for one in regions
        for piece in _without(one, [k for k in known if (k.domain_id, k.series) == (one.domain_id, one.series)])
    ]


def _without(region: Region, others: Sequence[Region]) -> list[Region]:
    pieces = [(region.begins_us, region.ends_us)]
    for other in others:
        pieces = [
            edge
            for begins, ends in pieces
            for edge in ((begins, min(ends, other.begins_us)), (max(begins, other.ends_us), ends))
            if edge[0] < edge[1]
        ]
    return [Region(region.domain_id, begins, ends, region.series) for begins, ends in pieces]


def clipped(region: Region, others: Sequence[Region]) -> list[Region]:
    """What of a region lies in some others of its domain, whatever their series."""
    return [
        Region(region.domain_id, begins, ends, region.series)
        for other in others
        if other.domain_id == region.domain_id
        and (begins := max(region.begins_us, other.begins_us)) < (ends := min(region.ends_us, other.ends_us))
    ]


def inside(frame: pl.DataFrame, time_us: str, regions: Sequence[Region]) -> Bools:
    """Which rows of a frame (``domain_id``, ``series_id`` and a time) lie in some of the regions."""
    domain, time = frame["domain_id"].to_numpy(), frame[time_us].to_numpy()
    found = np.zeros(frame.height, np.bool_)
    for region in regions:
        its = (domain == region.domain_id) & (time >= region.begins_us) & (time < region.ends_us)
        if region.series is not None:
            its &= frame["series_id"].is_in(list(region.series)).to_numpy()
        found |= its
    return found
