"""Faults at chosen places of a computation, for tests: of one domain, in one asset, at one phase."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from analytics_pipeline.assets.calculation import Computed, Context, Work
from analytics_pipeline.assets.derive import Deriver
from analytics_pipeline.assets.spec import AssetSpec

PHASES = ("read", "compute", "write")


class FaultError(Exception):
    """What a faulty domain raises."""


@dataclass
class FaultyCalculation:
    """Lets something happen at one phase of a slice that holds a domain; otherwise as the real one."""

    real: Any
    domain: str
    phase: str
    happens: Callable[[Sequence[Work]], None]

    @property
    def spec(self) -> AssetSpec:
        return self.real.spec  # type: ignore[no-any-return]

    def compute(self, context: Context, works: Sequence[Work]) -> Computed:
        self._maybe("read", works)
        computed = self.real.compute(context, works)
        self._maybe("compute", works)

        def write(accepted: Any) -> Any:
            written = computed.write(accepted)
            self._maybe("write", works)
            return written

        return replace(computed, write=write)

    def _maybe(self, phase: str, works: Sequence[Work]) -> None:
        if phase == self.phase and any(work.domain.name == self.domain for work in works):
            self.happens(works)


def inject(deriver: Deriver, asset: str, domain: str, phase: str, error: BaseException | None = None) -> list[int]:
    """Raises at a phase of an asset whenever a slice holds the domain; the list gets the size of each such slice."""
    slices: list[int] = []

    def fail(works: Sequence[Work]) -> None:
        slices.append(len(works))
        raise error if error is not None else FaultError(f"{domain} fails to {phase}")

    happen(deriver, asset, domain, phase, fail)
    return slices


def happen(deriver: Deriver, asset: str, domain: str, phase: str, happens: Callable[[Sequence[Work]], None]) -> None:
    """Lets something happen at a phase of an asset whenever a slice holds the domain."""
    real = deriver._calculations[asset]
    deriver._calculations[asset] = FaultyCalculation(getattr(real, "real", real), domain, phase, happens)


def mend(deriver: Deriver) -> None:
    """Takes every fault away."""
    for asset, calculation in deriver._calculations.items():
        deriver._calculations[asset] = getattr(calculation, "real", calculation)
