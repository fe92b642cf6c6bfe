"""Where messages come from: Kafka. No SQL, Dagster or judgement of payloads."""
