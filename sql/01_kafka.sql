-- What comes from Kafka: offsets, batches, raw events, dead letters.
-- Idempotent and forward only. Unqualified names land in the schema that the migration runner puts first on
-- the search path. Works on plain PostgreSQL 15+; 20_timescaledb.sql adds what TimescaleDB offers.

-- Every domain by number: keys lead with it. Append-only, given by whoever meets a domain first, never reused.
CREATE TABLE IF NOT EXISTS domain_number (
    domain_id  integer PRIMARY KEY,
    domain     text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Topics as they were when the settings first named them: FIRST_OFFSET=latest is about what existed then.
CREATE TABLE IF NOT EXISTS kafka_topic (
    topic         text COLLATE "C" PRIMARY KEY,
    existed       boolean NOT NULL,
    first_seen_at timestamptz NOT NULL DEFAULT now()
);

-- A log is one life of one partition. Its epoch grows when the topic was recreated or the log was cut short.
CREATE TABLE IF NOT EXISTS kafka_log (
    log_id          integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic           text COLLATE "C" NOT NULL,
    partition       integer NOT NULL,
    epoch           integer NOT NULL,
    kafka_topic_id  text,                  -- filled in as soon as the broker tells it
    leader_epoch    integer,               -- of the last message read, where the broker tells it
    begin_offset    bigint NOT NULL,       -- the first offset that is this log's to read
    end_offset      bigint,                -- of an ended log: the next offset when it ended
    reason          text NOT NULL,
    started_at      timestamptz NOT NULL DEFAULT now(),
    ended_at        timestamptz,
    UNIQUE (topic, partition, epoch)
);

-- The truth about what was read: moved in the same transaction as the rows, by compare-and-set.
CREATE TABLE IF NOT EXISTS kafka_offset (
    topic           text COLLATE "C" NOT NULL,
    partition       integer NOT NULL,
    epoch           integer NOT NULL,
    log_id          integer NOT NULL UNIQUE REFERENCES kafka_log,
    next_offset     bigint NOT NULL,
    high_offset     bigint,                -- highest end seen by a drain, for lag
    leader_epoch    integer,               -- of the last message read
    watermark_time  timestamptz,           -- highest min(event time, Kafka time, arrival) of this partition
    last_kafka_time timestamptz,           -- tells idle partitions, by Kafka time and never by wall clock
    updated_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition)
) WITH (fillfactor = 50);                  -- every commit updates every active partition

-- Offsets without a stored row: compacted, of an aborted transaction, expired, skipped, or of an ended log.
-- Not here: the control records that end transactions, one offset each. The ranges of the batches count them.
CREATE TABLE IF NOT EXISTS offset_gap (
    gap_id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic       text COLLATE "C" NOT NULL,
    epoch       integer NOT NULL,
    partition   integer NOT NULL,
    from_offset bigint NOT NULL,
    to_offset   bigint,                    -- exclusive; NULL: the log ended somewhere unknown
    reason      text NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    accepted_at timestamptz,
    accepted_by text,
    UNIQUE NULLS NOT DISTINCT (topic, epoch, partition, from_offset, to_offset)
);

-- One commit of the drain, or several that were coalesced once they were reported and nothing of them is pending.
CREATE TABLE IF NOT EXISTS ingest_batch (
    batch_id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    arrived_at   timestamptz NOT NULL,     -- of the last one, where several were coalesced
    messages     integer NOT NULL,
    raw_rows     integer NOT NULL,
    dead_letters integer NOT NULL,
    duration_s   double precision NOT NULL,
    commits      integer NOT NULL DEFAULT 1,
    committed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Which offsets of which logs, with their messages: read by analytics_pipeline/storage/offset_ranges.py.
    ranges       bytea NOT NULL
);
ALTER TABLE ingest_batch ALTER COLUMN ranges SET STORAGE EXTERNAL;  -- it is compressed already
CREATE INDEX IF NOT EXISTS ingest_batch_arrived_at ON ingest_batch USING brin (arrived_at);

CREATE TABLE IF NOT EXISTS ingest_batch_hour (
    batch_id     bigint NOT NULL REFERENCES ingest_batch ON DELETE CASCADE,
    hour         timestamptz NOT NULL,
    domain       text NOT NULL,
    raw_rows     integer NOT NULL,
    dead_letters integer NOT NULL,
    late_rows    integer NOT NULL,         -- behind watermark minus allowed lateness when they arrived
    reasons      jsonb NOT NULL DEFAULT '{}',
    samples      jsonb NOT NULL DEFAULT '[]',
    PRIMARY KEY (batch_id, hour, domain)
);
CREATE INDEX IF NOT EXISTS ingest_batch_hour_hour ON ingest_batch_hour (hour, batch_id);

CREATE TABLE IF NOT EXISTS raw_events (
    topic      text COLLATE "C" NOT NULL,
    epoch      integer NOT NULL,
    partition  integer NOT NULL,
    "offset"   bigint NOT NULL,
    ordinal    integer NOT NULL DEFAULT 0, -- place in a message that was split
    domain_id  integer NOT NULL,
    key        bytea,
    headers    jsonb,
    kafka_time timestamptz NOT NULL,
    event_time timestamptz NOT NULL,
    arrived_at timestamptz NOT NULL,
    batch_id   bigint NOT NULL,
    payload    text NOT NULL,
    PRIMARY KEY (topic, epoch, partition, "offset", ordinal, event_time)
);
-- A batch's id is known only in the transaction that writes it; the rows were encoded before.
ALTER TABLE raw_events ALTER COLUMN batch_id
    SET DEFAULT nullif(current_setting('analytics_pipeline.batch_id', true), '')::bigint;
-- Rows mostly come in the order of their time: this costs a quarter of what a B-tree cost each COPY.
CREATE INDEX IF NOT EXISTS raw_events_event_time ON raw_events USING brin (event_time timestamptz_minmax_multi_ops)
    WITH (autosummarize = on);

CREATE TABLE IF NOT EXISTS dead_letters (
    topic       text COLLATE "C" NOT NULL,
    epoch       integer NOT NULL,
    partition   integer NOT NULL,
    "offset"    bigint NOT NULL,
    ordinal     integer NOT NULL DEFAULT 0,
    stage       text NOT NULL,
    hour        timestamptz NOT NULL,
    domain_id   integer NOT NULL,
    reason      text NOT NULL,
    error       text NOT NULL,
    payload     bytea,
    key         bytea,
    headers     jsonb,
    kafka_time  timestamptz NOT NULL,
    event_time  timestamptz,
    arrived_at  timestamptz NOT NULL,
    batch_id    bigint,
    is_element  boolean NOT NULL DEFAULT false,  -- the payload is an element of a message that was split
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, epoch, partition, "offset", ordinal, stage)
);
CREATE INDEX IF NOT EXISTS dead_letters_hour ON dead_letters (hour, stage, domain_id);
