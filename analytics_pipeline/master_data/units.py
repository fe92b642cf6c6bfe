"""Factors from a unit to another, by their names. Pure; `pint` knows the names, and only an import of files asks it.

Exact fractions until the end: 5/9 is the double next to it, on every machine. Angles are a dimension of their own, as
one revolution a minute is a sixtieth of a hertz to people and 2π times that to the books: such a factor is given by
hand.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any

from analytics_pipeline.errors import PipelineError


class UnitConversionError(PipelineError):
    """A unit without a factor to another that its name would give: says why."""


def conversion(unit: str, canonical_unit: str) -> tuple[float, float]:
    """(factor, shift), so that ``factor · value + shift`` is the value in the canonical unit.

    Raises:
        UnitConversionError: a name is not known, or the two do not convert into each other by a factor and a shift.
    """
    if unit == canonical_unit:
        return 1.0, 0.0
    zero, one, two = (_convert(Fraction(n), unit, canonical_unit) for n in range(3))
    if two - one != one - zero or one <= zero:
        raise UnitConversionError(f"{unit!r} becomes {canonical_unit!r} by no factor")
    return float(one - zero), float(zero)


def _convert(value: Fraction, unit: str, canonical_unit: str) -> Fraction:
    if _angle(unit) != _angle(canonical_unit):
        raise UnitConversionError(f"{unit!r} does not convert into {canonical_unit!r}: only one of them is an angle")
    try:
        return Fraction(_registry().Quantity(value, unit).to(canonical_unit).magnitude)
    except Exception as error:  # whatever pint cannot do, a person can say by a factor
        raise UnitConversionError(f"{unit!r} does not convert into {canonical_unit!r}") from error


@lru_cache(maxsize=256)
def _angle(name: str) -> Any:
    """The power of an angle in a unit."""
    try:
        return dict(_registry().Quantity(Fraction(1), name).to_root_units().unit_items()).get("radian", 0)
    except Exception as error:  # pint raises much for what is not a unit
        raise UnitConversionError(f"{name!r} is no unit that is known by its name") from error


@lru_cache(maxsize=1)
def _registry() -> Any:
    from pint import UnitRegistry

    return UnitRegistry(non_int_type=Fraction)
