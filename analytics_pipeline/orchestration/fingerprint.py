"""Whether this process still runs the code that is on disk. Warm workers do not notice a reload by themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from analytics_pipeline.errors import StaleCodeError
from analytics_pipeline.orchestration.tags import CODE_TAG

PACKAGE_FOLDER = Path(__file__).resolve().parents[1]

#: Hexadecimal digits kept: enough to tell versions apart, short enough for a tag that people read.
DIGITS = 12


def fingerprint(folder: Path = PACKAGE_FOLDER) -> str:
    """A digest over the names and contents of the package's Python sources as they are on disk now."""
    stamps = tuple(
        (path.relative_to(folder).as_posix(), path.stat().st_mtime_ns, path.stat().st_size)
        for path in sorted(folder.rglob("*.py"))
    )
    return _digest(folder, stamps)


@lru_cache(maxsize=4)
def _digest(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, _modified_ns, _size in stamps:
        digest.update(name.encode() + b"\0" + (folder / name).read_bytes() + b"\0")
    return digest.hexdigest()[:DIGITS]


#: What this process imported. Children forked by Celery inherit the value with the code.
LOADED = fingerprint()


def refuse_stale_code(run_tags: Mapping[str, str], loaded: str = LOADED, on_disk: str | None = None) -> None:
    """Stop a run whose worker has other code than the code location that asked for it.

    Runs of the UI carry no fingerprint: there, the sources on disk stand for what the code location shows.

    Raises:
        StaleCodeError: with the remedy.
    """
    wanted = run_tags.get(CODE_TAG)
    if wanted is not None:
        if wanted != loaded:
            raise StaleCodeError(
                f"this worker runs code {loaded}, the code location asked with code {wanted}: restart the "
                "Celery workers, and reload the code location in the UI, so that both run the same"
            )
        return
    found = on_disk or fingerprint()
    if found != loaded:
        raise StaleCodeError(
            f"this worker runs code {loaded}, the sources on disk are {found}: restart the Celery workers "
            "(with 'analytics-pipeline up' or 'make demo': stop it and start it again)"
        )
