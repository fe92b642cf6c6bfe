"""PostgreSQL and TimescaleDB: what is kept, and how it is written and read. No Kafka, Dagster or formulas."""
