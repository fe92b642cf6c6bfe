"""From Kafka messages to trustworthy, recomputable numbers in TimescaleDB.

::

    Kafka ──► drain_kafka ──► raw_events ──► normalized_measurements ──► window_aggregates ──┬──► anomalies
              (sensor)            │                    │                                     └──► kpis
                                  └── bad payloads ────┴── bad rows ──► dead_letters (bytes kept)

Every asset is partitioned by the hour of event time (UTC). A domain partition is (asset, hour, domain): what is
locked, computed, gated, quarantined and retried. ``docs/glossary.md`` has the words. Where to look:

==================  =====================================================================================
``records``         what flows: dead letters, outcomes, pending hours; ``messages``: what comes from Kafka
``tables``          what a stored table is: columns with type, unit and meaning
``formulas``        pure: moments, rank sketches, limits
``detectors``       pure: one detector per file
``domains``         one domain per file: topics, decoding, expectations, detectors
``quality``         Great Expectations: frame in, gate result out
``sources``         Kafka
``storage``         PostgreSQL and TimescaleDB: COPY, offsets, pending work, partition state, dead letters
``assets``          a folder per asset: ``spec``, ``transform`` (pure), ``table`` (SQL), ``calculation``;
                    ``raw_events``: drain and rebuild; ``derive``: the one protocol of the other four
``orchestration``   Dagster: assets, checks, sensors, schedules, launcher, live runs, reports
``embedded``        the real servers that pip brings, started and stopped
``cli``             ``analytics-pipeline``
==================  =====================================================================================
"""
