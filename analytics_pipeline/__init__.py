"""From Kafka messages to trustworthy, recomputable numbers in TimescaleDB.

::

    Kafka ──► drain_kafka ──► raw_events ──► normalized_measurements ──► window_aggregates ──┬──► anomalies
              (sensor, 5 s)       │                    │                                     └──► kpis
                                  └── bad payloads ────┴── bad rows ──► dead_letters (bytes kept, replayable)

Every asset is partitioned by the hour of event time (UTC). Where to look:

==================  =====================================================================================
``records``         what flows: positions, raw messages, dead letters, outcomes
``domains``         one file a domain: topics, decoding, gates, detectors
``formulas``        pure: moments, percentile sketches, limits
``detectors``       pure: one detector a file
``stages``          pure: one transform an asset
``quality``         Great Expectations: frame in, verdict out
``sources``         Kafka
``storage``         TimescaleDB: COPY, offsets, the ledger of pending work, dead letters
``flow``            the two paths, drain and derive, each one protocol; knows nothing of Dagster
``orchestration``   Dagster: assets, checks, sensors, schedules
``embedded``        the real servers that pip brings, started and stopped
``cli``             ``analytics-pipeline``
==================  =====================================================================================
"""
