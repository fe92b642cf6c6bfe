-- What messages say beside their rows, kept once and without history. Idempotent and forward only.
-- Not by hour, and not taken by retention: like the series, these are names, not facts about data.

-- What the sample keys of normalized_measurements stand for, where a domain identifies samples by name.
CREATE TABLE IF NOT EXISTS sample_names (
    domain_id  integer NOT NULL,
    sample_key bigint NOT NULL CHECK (sample_key > 0),
    sample_id  text NOT NULL,
    replicate  text,
    PRIMARY KEY (domain_id, sample_key)
);

-- Attributes of a series that do not identify it, as the last message said, by (kafka_time, log_id, "offset", ordinal).
CREATE TABLE IF NOT EXISTS series_attributes (
    domain_id  integer NOT NULL,
    series_id  bigint NOT NULL,
    attributes text NOT NULL,                    -- a JSON object
    kafka_time timestamptz NOT NULL,
    log_id     integer NOT NULL,
    "offset"   bigint NOT NULL,
    ordinal    integer NOT NULL,
    PRIMARY KEY (domain_id, series_id)
) WITH (fillfactor = 70);  -- live series say something with every batch: with room in their page, no index is written
