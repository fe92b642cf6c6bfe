"""The formulas that figures are made of: moments, sketches, limits. Pure numpy and polars.

Not here: which rows a formula is fed (assets/*/transform.py), what is an anomaly (detectors/), and all IO.
"""
