"""The transforms, one an asset. Pure: frames in, frames out; no Kafka, SQL, Dagster, clock or environment."""
