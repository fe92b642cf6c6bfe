"""Factors between units by their names: exact, and none where people could mean another."""

from __future__ import annotations

import subprocess
import sys

import pytest

from analytics_pipeline.master_data.units import UnitConversionError, conversion


@pytest.mark.parametrize(
    ("unit", "canonical_unit", "factor", "shift"),
    [
        ("°C", "°C", 1.0, 0.0),
        ("pieces", "pieces", 1.0, 0.0),  # the same name needs no meaning
        ("°F", "°C", 5 / 9, -160 / 9),
        ("K", "°C", 1.0, -273.15),
        ("mbar", "bar", 0.001, 0.0),
        ("m³/h", "L/min", 50 / 3, 0.0),
        ("kWh", "J", 3.6e6, 0.0),
        ("%", "dimensionless", 0.01, 0.0),
        ("°", "turn", 1 / 360, 0.0),
    ],
)
def test_factors_are_the_doubles_next_to_the_exact_ones(
    unit: str, canonical_unit: str, factor: float, shift: float
) -> None:
    found = conversion(unit, canonical_unit)
    assert found == pytest.approx((factor, shift), rel=1e-14)
    assert unit == "°" or found == (factor, shift)  # degrees go by π, which is no fraction


@pytest.mark.parametrize(
    ("unit", "canonical_unit"),
    [("bar", "kg"), ("pieces", "kg"), ("kg", "pieces"), ("dBm", "W"), ("rpm", "Hz"), ("", "kg")],
)
def test_what_names_do_not_say_is_not_guessed(unit: str, canonical_unit: str) -> None:
    with pytest.raises(UnitConversionError):
        conversion(unit, canonical_unit)


def test_only_an_import_of_units_without_factors_loads_pint() -> None:
    loads = "import sys, analytics_pipeline.assets.derive, analytics_pipeline.cli.master_data\n"
    loads += "import analytics_pipeline.storage.master_data_import as it\nassert 'pint' not in sys.modules\n"
    loads += "it.parse(it.BY_NAME['units'], 'u', 'metric,unit,canonical_unit\\ntemp,K,°C\\n')\n"
    loads += "assert 'pint' in sys.modules"
    subprocess.run([sys.executable, "-c", loads], check=True)
