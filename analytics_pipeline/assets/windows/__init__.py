"""window_aggregates: statistics of each series and window."""
