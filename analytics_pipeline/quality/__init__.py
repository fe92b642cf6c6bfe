"""Great Expectations as a gate before every write: frame in, verdict out. No SQL, Kafka or Dagster."""
