"""The two paths of the data: drain (Kafka to raw events) and derive (everything after). No Dagster here."""
