"""Arithmetic of regions: what is covered stays covered, and each row lies in one region only."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from analytics_pipeline.assets.regions import disjoint, widened
from analytics_pipeline.records import Region

DOMAINS, SERIES, MOMENTS = range(2), range(4), range(12)


@st.composite
def regions(draw: st.DrawFn) -> Region:
    begins = draw(st.integers(0, 10))
    some = st.sets(st.sampled_from(SERIES)).map(lambda numbers: tuple(sorted(numbers)))
    ends = draw(st.integers(begins + 1, 12))
    return Region(draw(st.sampled_from(DOMAINS)), begins, ends, draw(st.none() | some))


def holding(found: list[Region], domain: int, series: int, moment: int) -> int:
    """How many of the regions hold one row."""
    return sum(
        one.domain_id == domain
        and one.begins_us <= moment < one.ends_us
        and (one.series is None or series in one.series)
        for one in found
    )


@given(st.lists(regions(), max_size=8))
def test_disjoint_regions_hold_the_same_rows_each_once(given_regions: list[Region]) -> None:
    found = disjoint(given_regions)
    for row in product(DOMAINS, SERIES, MOMENTS):
        assert holding(found, *row) == min(1, holding(given_regions, *row)), row


@given(st.lists(regions(), max_size=8), st.sampled_from([2, 3, 6]))
def test_widened_regions_hold_whole_windows(given_regions: list[Region], size: int) -> None:
    found = disjoint(widened(given_regions, size))
    for domain, series, moment in product(DOMAINS, SERIES, MOMENTS):
        window = range(moment // size * size, moment // size * size + size)
        wanted = any(holding(given_regions, domain, series, one) for one in window)
        assert holding(found, domain, series, moment) == wanted
