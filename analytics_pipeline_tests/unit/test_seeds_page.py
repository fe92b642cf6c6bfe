"""docs/seeds.md and docs/domains.md name what is there: tests that exist, every domain, every topic."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from analytics_pipeline.domains import discover

ROOT = Path(__file__).parents[2]
SEEDS = (ROOT / "docs" / "seeds.md").read_text("utf-8")
DOMAINS = (ROOT / "docs" / "domains.md").read_text("utf-8")
LATER = ("next", "detectors and archive", "API and alerts")
ROWS = [line for line in SEEDS.splitlines() if line.startswith("| ") and not line.startswith("| feature")]


@pytest.mark.parametrize(("path", "name"), sorted(set(re.findall(r"`([a-z_/]+\.py)::(test_\w+)`", SEEDS))))
def test_a_test_that_the_page_names_exists(path: str, name: str) -> None:
    assert f"def {name}(" in (ROOT / "analytics_pipeline_tests" / path).read_text("utf-8")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:42])
def test_every_feature_names_a_test_or_an_issue_or_a_page(row: str) -> None:
    shown = row.strip("| ").rpartition(" | ")[2]
    assert "::test_" in shown or shown in LATER or "README" in shown, row


def test_the_page_of_domains_has_every_domain_with_its_topics() -> None:
    for domain in discover():
        [row] = [line for line in DOMAINS.splitlines() if re.match(rf"\|[^|]*`{domain.name}`", line)]
        assert all(f"`{topic}`" in row for topic in domain.topics), domain.name
