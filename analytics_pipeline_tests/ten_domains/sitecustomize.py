"""Ten domains instead of one, in every process that has this folder in PYTHONPATH: sensor and nine copies of it.

``PYTHONPATH=$PWD/analytics_pipeline_tests/ten_domains make smoke`` holds the whole stack to its invariants with them.
"""

from dataclasses import replace
from importlib.util import find_spec


def _register() -> None:
    from analytics_pipeline import domains
    from analytics_pipeline.domains.sensor import DOMAIN

    copies = [replace(DOMAIN, name=f"copy_{n}", topics=(f"{DOMAIN.topics[0]}.{n}",)) for n in range(1, 10)]
    ten = (*sorted(copies, key=lambda domain: domain.name), DOMAIN)
    domains.discover = lambda: ten  # type: ignore[assignment]


if find_spec("analytics_pipeline"):
    _register()
