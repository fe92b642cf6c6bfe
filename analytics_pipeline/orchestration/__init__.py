"""What Dagster sees of the pipeline: assets, checks, sensors, schedules, and how runs reach warm workers.

Glue only. What an asset computes is in ``flow``; nothing here reads Kafka or knows a table of the pipeline.
"""
