"""normalized_measurements: one row per measurement, in canonical form."""
