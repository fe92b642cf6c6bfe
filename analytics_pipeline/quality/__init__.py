"""Great Expectations as a gate before every write: frame in, result out. No SQL, Kafka or Dagster."""
