"""Where messages come from: Kafka. No SQL, Dagster or decoding of payloads."""
