"""The formulas that figures are made of: moments, sketches, limits. Pure numpy and polars.

What stays out: which rows a formula is fed (stages/), what a verdict means (detectors/), and all IO.
"""
