"""anomalies: what the detectors found in the windows."""
