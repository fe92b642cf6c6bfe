"""raw_events: every message as it came."""
