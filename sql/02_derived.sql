-- What is computed: pending work, what each domain partition holds, and the tables of the derived assets.
-- Idempotent and forward only. A domain partition is (asset, domain, hour).
-- Every table leads its key with the domain's number, so that the rows of one domain are read, replaced and dropped
-- without those of others, by plans that need no statistics; and has a BRIN index on its time.

-- What must be computed again. Rows are inserted and deleted, never updated, so that a batch that lands while its
-- hour is being computed keeps its row. A row names a superset of what is stale:
--   series   only these series; NULL: all
--   spans    only these seconds of the hour, as begin, end, begin, end …, half-open; NULL: the whole hour
--   batches  of normalized_measurements: only what these batches brought; NULL: the whole hour
--   above_base  of window_aggregates: only the windows above the base; their base windows are up to date
--   states   of window_aggregates: only what is computed of states
-- not_before: live work that may wait; until then it is not read.
-- held: this was read by an evaluation whose gate quarantined the domain partition; it waits for anything new.
CREATE TABLE IF NOT EXISTS pending_work (
    work_id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    asset      text NOT NULL,
    domain_id  integer NOT NULL,
    hour       timestamptz NOT NULL,
    series     bigint[],
    spans      integer[],
    batches    bigint[],
    above_base boolean NOT NULL DEFAULT false,
    states     boolean NOT NULL DEFAULT false,
    not_before timestamptz NOT NULL DEFAULT '-infinity',
    held       boolean NOT NULL DEFAULT false,
    reason     text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS pending_work_partition ON pending_work (hour, asset, domain_id);

-- What each domain partition holds, and whether it is quarantined.
CREATE TABLE IF NOT EXISTS partition_state (
    asset       text NOT NULL,
    domain_id   integer NOT NULL,
    hour        timestamptz NOT NULL,
    rows        bigint NOT NULL,
    rows_failed bigint NOT NULL,                 -- over its whole content, as the gate's limit counts
    rows_superseded bigint NOT NULL DEFAULT 0,   -- passed the gate, and lost to a later one of the same identity
    status      text NOT NULL CHECK (status IN ('open', 'quarantined', 'released')),
    detail      jsonb NOT NULL DEFAULT '{}',
    run_id      text NOT NULL DEFAULT '',
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (asset, domain_id, hour)
);
CREATE INDEX IF NOT EXISTS partition_state_hour ON partition_state (hour);
CREATE INDEX IF NOT EXISTS partition_state_quarantined ON partition_state (hour) WHERE status <> 'open';

-- Domain partitions whose last computation raised: they rest until next_try_at, or until the code changes.
CREATE TABLE IF NOT EXISTS partition_failure (
    asset        text NOT NULL,
    domain_id    integer NOT NULL,
    hour         timestamptz NOT NULL,
    attempts     integer NOT NULL,
    next_try_at  timestamptz NOT NULL,
    code_version text NOT NULL,
    error        text NOT NULL,
    failed_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (asset, domain_id, hour)
);

-- What each commit did, for whoever reports it to Dagster; written in the transaction of the rows.
CREATE TABLE IF NOT EXISTS partition_outcome (
    outcome_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    asset        text NOT NULL,
    domain_id    integer NOT NULL,
    hour         timestamptz NOT NULL,
    run_id       text NOT NULL,
    mode         text NOT NULL,
    rows         bigint NOT NULL,
    rows_written bigint NOT NULL,
    dead_letters bigint NOT NULL,
    late_rows    bigint NOT NULL,
    rows_failed  bigint NOT NULL,
    quarantined  boolean NOT NULL,
    gate         jsonb NOT NULL,
    duration_s   double precision NOT NULL,
    committed_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    report_begun_at timestamptz,           -- by another than its run
    reported_at     timestamptz
);
CREATE INDEX IF NOT EXISTS partition_outcome_unreported ON partition_outcome (hour, outcome_id)
    WHERE reported_at IS NULL;

-- Which run was asked to do an hour's pending work, and when it may be asked again.
CREATE TABLE IF NOT EXISTS run_request (
    hour         timestamptz PRIMARY KEY,
    request_id   text NOT NULL,                    -- tag of the run: analytics_pipeline/run_request
    attempt      integer NOT NULL,
    requested_at timestamptz NOT NULL,
    next_try_at  timestamptz NOT NULL,
    last_error   text
);

-- Versions of what computations read beside their inputs: an edit raises one, a commit looks whether it still
-- stands.
CREATE TABLE IF NOT EXISTS input_version (
    name    text PRIMARY KEY,
    version bigint NOT NULL
);
INSERT INTO input_version (name, version) VALUES ('master_data', 0), ('retention', 0) ON CONFLICT DO NOTHING;

CREATE TABLE IF NOT EXISTS measurement_series (
    series_id  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    domain_id  integer NOT NULL,
    tenant_id  text NOT NULL,
    factory_id text,
    machine_id text,
    station_id text,
    sensor_id  text,
    metric     text NOT NULL,
    unit       text,
    UNIQUE NULLS NOT DISTINCT (domain_id, tenant_id, factory_id, machine_id, station_id, sensor_id, metric, unit)
);
CREATE INDEX IF NOT EXISTS measurement_series_domain ON measurement_series (domain_id, series_id);

-- Fixed width and free of NULL, so that it is read and written by binary COPY without parsing.
CREATE TABLE IF NOT EXISTS normalized_measurements (
    domain_id  integer NOT NULL,
    event_time timestamptz NOT NULL,
    series_id  bigint NOT NULL,
    sample_key bigint NOT NULL,
    value      double precision NOT NULL,
    kafka_time timestamptz NOT NULL,
    log_id     integer NOT NULL,
    "offset"   bigint NOT NULL,
    ordinal    integer NOT NULL,
    quality    smallint NOT NULL,                -- 0 good, 1 uncertain, 2 bad, 3 below and 4 above the value
    PRIMARY KEY (domain_id, event_time, series_id, sample_key)
);
CREATE INDEX IF NOT EXISTS normalized_measurements_time ON normalized_measurements
    USING brin (event_time timestamptz_minmax_multi_ops);

-- One row per event; of several with one identity, the last by (kafka_time, log_id, "offset", ordinal), wherever it is.
CREATE TABLE IF NOT EXISTS normalized_events (
    domain_id   integer NOT NULL,
    event_time  timestamptz NOT NULL,
    identity    text COLLATE "C" NOT NULL,       -- hash of tenant and id, or of the content
    event_id    text,
    tenant_id   text NOT NULL,
    factory_id  text,
    machine_id  text,
    entity_type text NOT NULL,
    entity_id   text NOT NULL,
    event_type  text NOT NULL,
    user_id     text,
    value       double precision,
    properties  text NOT NULL,                   -- JSON with sorted keys, as it was hashed
    kafka_time  timestamptz NOT NULL,
    log_id      integer NOT NULL,
    "offset"    bigint NOT NULL,
    ordinal     integer NOT NULL,
    PRIMARY KEY (domain_id, event_time, identity)
);
CREATE INDEX IF NOT EXISTS normalized_events_time ON normalized_events
    USING brin (event_time timestamptz_minmax_multi_ops);

-- Events that have an id of their own, by the hours in which it was seen: the last row of an id is the event. No
-- hypertable: an id is looked up in all hours at once.
CREATE TABLE IF NOT EXISTS event_identities (
    domain_id  integer NOT NULL,
    identity   text COLLATE "C" NOT NULL,
    event_time timestamptz NOT NULL,
    kafka_time timestamptz NOT NULL,
    log_id     integer NOT NULL,
    "offset"   bigint NOT NULL,
    ordinal    integer NOT NULL,
    PRIMARY KEY (domain_id, event_time, identity)
);
CREATE INDEX IF NOT EXISTS event_identities_identity ON event_identities (domain_id, identity);
CREATE INDEX IF NOT EXISTS event_identities_time ON event_identities
    USING brin (event_time timestamptz_minmax_multi_ops);

CREATE TABLE IF NOT EXISTS state_changes (
    domain_id  integer NOT NULL,
    event_time timestamptz NOT NULL,
    series_id  bigint NOT NULL,                  -- its metric is the kind of state
    state      text NOT NULL,
    kafka_time timestamptz NOT NULL,
    log_id     integer NOT NULL,
    "offset"   bigint NOT NULL,
    ordinal    integer NOT NULL,
    PRIMARY KEY (domain_id, event_time, series_id)
);
CREATE INDEX IF NOT EXISTS state_changes_time ON state_changes USING brin (event_time timestamptz_minmax_multi_ops);

CREATE TABLE IF NOT EXISTS counter_readings (
    domain_id  integer NOT NULL,
    event_time timestamptz NOT NULL,
    series_id  bigint NOT NULL,                  -- its metric is what is counted
    reading    bigint NOT NULL,
    kafka_time timestamptz NOT NULL,
    log_id     integer NOT NULL,
    "offset"   bigint NOT NULL,
    ordinal    integer NOT NULL,
    PRIMARY KEY (domain_id, event_time, series_id)
);
CREATE INDEX IF NOT EXISTS counter_readings_time ON counter_readings
    USING brin (event_time timestamptz_minmax_multi_ops);

-- A window with only bad samples has count_n 0, and NaN in its figures.
CREATE TABLE IF NOT EXISTS window_aggregates (
    domain_id     integer NOT NULL,
    window_s      integer NOT NULL,
    bucket_start  timestamptz NOT NULL,
    series_id     bigint NOT NULL,
    count_n       bigint NOT NULL,
    avg_val       double precision NOT NULL,
    m2            double precision NOT NULL,
    min_val       double precision NOT NULL,
    max_val       double precision NOT NULL,
    first_val     double precision NOT NULL,
    first_time    timestamptz NOT NULL,
    last_val      double precision NOT NULL,
    last_time     timestamptz NOT NULL,
    p50           double precision NOT NULL,
    p95           double precision NOT NULL,
    p99           double precision NOT NULL,
    base_n        integer NOT NULL,
    coverage      double precision NOT NULL,
    tw_integral   double precision NOT NULL,
    tw_covered_s  double precision NOT NULL,
    bad_n         integer NOT NULL,
    uncertain_n   integer NOT NULL,
    censored_n    integer NOT NULL,
    late_n        integer NOT NULL,
    ends_bad      boolean NOT NULL,
    sketch        bytea NOT NULL,
    revision      integer NOT NULL DEFAULT 0,
    updated_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (domain_id, window_s, bucket_start, series_id)
) WITH (fillfactor = 70);  -- live windows change with every batch: with room in their page, no index is written
CREATE INDEX IF NOT EXISTS window_aggregates_series ON window_aggregates (series_id, window_s, bucket_start);
CREATE INDEX IF NOT EXISTS window_aggregates_time ON window_aggregates
    USING brin (bucket_start timestamptz_minmax_multi_ops);

CREATE TABLE IF NOT EXISTS event_rollups (
    domain_id    integer NOT NULL,
    window_s     integer NOT NULL,
    bucket_start timestamptz NOT NULL,
    tenant_id    text,
    factory_id   text,
    machine_id   text,
    entity_type  text NOT NULL,
    event_type   text NOT NULL,
    count_n      bigint NOT NULL,
    value_n      bigint NOT NULL,
    sum_val      double precision,               -- NULL where value_n is 0: unknown is not zero
    revision     integer NOT NULL DEFAULT 0,
    updated_at   timestamptz NOT NULL DEFAULT now(),
    CHECK ((value_n = 0) = (sum_val IS NULL)),
    UNIQUE NULLS NOT DISTINCT (domain_id, window_s, bucket_start, tenant_id, factory_id, machine_id, entity_type,
                               event_type)
);
CREATE INDEX IF NOT EXISTS event_rollups_time ON event_rollups USING brin (bucket_start timestamptz_minmax_multi_ops);

CREATE TABLE IF NOT EXISTS state_durations (
    domain_id    integer NOT NULL,
    window_s     integer NOT NULL,
    bucket_start timestamptz NOT NULL,
    series_id    bigint NOT NULL,
    state        text NOT NULL,
    duration_us  bigint NOT NULL,
    revision     integer NOT NULL DEFAULT 0,
    updated_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (domain_id, window_s, bucket_start, series_id, state)
);
CREATE INDEX IF NOT EXISTS state_durations_time ON state_durations
    USING brin (bucket_start timestamptz_minmax_multi_ops);

-- The state of each series at the end of each hour, so that the next hour needs to look no further back.
CREATE TABLE IF NOT EXISTS carried_states (
    domain_id    integer NOT NULL,
    bucket_start timestamptz NOT NULL,           -- begin of the hour
    series_id    bigint NOT NULL,
    state        text NOT NULL,
    PRIMARY KEY (domain_id, bucket_start, series_id)
);
CREATE INDEX IF NOT EXISTS carried_states_time ON carried_states
    USING brin (bucket_start timestamptz_minmax_multi_ops);

-- Up to when the states of a domain have lasted: the highest watermark that was ever seen. Whoever advances it asks for
-- the hours that it passes, in the same transaction.
CREATE TABLE IF NOT EXISTS state_clock (
    domain_id integer PRIMARY KEY,
    until     timestamptz NOT NULL
);

CREATE TABLE IF NOT EXISTS counter_increments (
    domain_id    integer NOT NULL,
    window_s     integer NOT NULL,
    bucket_start timestamptz NOT NULL,
    series_id    bigint NOT NULL,
    increment    bigint,                         -- NULL with a reason where nothing is known: unknown is not zero
    reason       text,
    readings     bigint NOT NULL,
    resets       bigint NOT NULL,
    roll_overs   bigint NOT NULL,
    swaps        bigint NOT NULL,
    unknown_n    bigint NOT NULL,
    gaps_spanned bigint NOT NULL,
    last_time    timestamptz NOT NULL,
    last_reading bigint NOT NULL,
    revision     integer NOT NULL DEFAULT 0,
    updated_at   timestamptz NOT NULL DEFAULT now(),
    CHECK ((increment IS NULL) = (reason IS NOT NULL)),
    PRIMARY KEY (domain_id, window_s, bucket_start, series_id)
) WITH (fillfactor = 70);  -- as window_aggregates
CREATE INDEX IF NOT EXISTS counter_increments_time ON counter_increments
    USING brin (bucket_start timestamptz_minmax_multi_ops);
-- The last window of a series before a time, and the first one after it, however far that is.
CREATE INDEX IF NOT EXISTS counter_increments_series ON counter_increments
    (domain_id, window_s, series_id, bucket_start);

-- Of each series the last reading below counter_floor, from which the first one above it counts on. Written by
-- retention before what is below goes, one row per series; no hypertable, because it is looked up by series alone.
CREATE TABLE IF NOT EXISTS carried_readings (
    domain_id  integer NOT NULL,
    series_id  bigint NOT NULL,
    event_time timestamptz NOT NULL,
    reading    bigint NOT NULL,
    PRIMARY KEY (domain_id, series_id)
);

-- Below it, what is known of counters is in carried_readings and nowhere else.
CREATE TABLE IF NOT EXISTS counter_floor (
    domain_id  integer PRIMARY KEY,
    floor_hour timestamptz NOT NULL
);

CREATE TABLE IF NOT EXISTS anomalies (
    domain_id    integer NOT NULL,
    bucket_start timestamptz NOT NULL,
    window_s     integer NOT NULL,
    series_id    bigint NOT NULL,
    detector     text NOT NULL,
    anomaly_id   text NOT NULL,
    severity     text NOT NULL,
    value        double precision NOT NULL,
    score        double precision NOT NULL,
    detail       text NOT NULL,
    PRIMARY KEY (domain_id, bucket_start, window_s, series_id, detector)
);
CREATE INDEX IF NOT EXISTS anomalies_time ON anomalies USING brin (bucket_start timestamptz_minmax_multi_ops);

CREATE TABLE IF NOT EXISTS kpis (
    domain_id    integer NOT NULL,
    bucket_start timestamptz NOT NULL,
    window_s     integer NOT NULL,
    tenant_id    text,
    factory_id   text,
    machine_id   text,
    kpi          text NOT NULL,
    value        double precision,
    numerator    double precision,
    denominator  double precision,
    unit         text NOT NULL,
    reason       text,
    CHECK ((value IS NULL) = (reason IS NOT NULL)),
    UNIQUE NULLS NOT DISTINCT (domain_id, bucket_start, window_s, tenant_id, factory_id, machine_id, kpi)
);
CREATE INDEX IF NOT EXISTS kpis_time ON kpis USING brin (bucket_start timestamptz_minmax_multi_ops);

-- Hours below the floor are gone by retention and are never computed again unless restored.
CREATE TABLE IF NOT EXISTS retention_floor (
    domain     text NOT NULL,
    asset      text NOT NULL,
    floor_hour timestamptz NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (domain, asset)
);
