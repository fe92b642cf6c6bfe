-- What is computed: pending work, partition state, series, measurements, windows, anomalies, KPIs, master data.
-- Idempotent and forward only.

-- The ledger: what must be recomputed. Rows are only inserted and deleted, never updated, so that a batch that
-- lands while an hour is being computed keeps its mark.
--   scope of normalized_measurements: batch ids; of window_aggregates: starts of base windows, seconds into the
--   hour, or -1 for windows longer than an hour; of anomalies: the first changed base window, seconds into the
--   hour. NULL: the whole hour.
CREATE TABLE IF NOT EXISTS pending_mark (
    mark_id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    asset      text NOT NULL,
    hour       timestamptz NOT NULL,
    domain     text NOT NULL,
    scope      bigint[],
    reason     text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS pending_mark_hour ON pending_mark (hour, asset, domain);

-- What each (asset, hour, domain) holds, counted over its whole content, and whether it is quarantined.
CREATE TABLE IF NOT EXISTS partition_state (
    asset             text NOT NULL,
    hour              timestamptz NOT NULL,
    domain            text NOT NULL,
    rows              bigint NOT NULL,
    rows_seen         bigint NOT NULL,
    rows_failed       bigint NOT NULL,
    status            text NOT NULL CHECK (status IN ('open', 'quarantined', 'released')),
    evaluated_mark_id bigint NOT NULL DEFAULT 0,   -- marks up to here were judged when it was quarantined
    detail            jsonb NOT NULL DEFAULT '{}',
    run_id            text NOT NULL DEFAULT '',
    updated_at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (asset, hour, domain)
);
CREATE INDEX IF NOT EXISTS partition_state_quarantined ON partition_state (hour) WHERE status = 'quarantined';

-- Which run was asked to do an hour's pending work, and when it may be asked again.
CREATE TABLE IF NOT EXISTS hour_claim (
    hour         timestamptz PRIMARY KEY,
    claim        text NOT NULL,                    -- tag of the run: analytics_pipeline/claim
    attempt      integer NOT NULL,
    requested_at timestamptz NOT NULL,
    next_try_at  timestamptz NOT NULL,
    last_error   text
);

CREATE TABLE IF NOT EXISTS measurement_series (
    series_id  integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    domain     text NOT NULL,
    tenant_id  text,
    factory_id text,
    machine_id text,
    station_id text,
    sensor_id  text,
    metric     text NOT NULL,
    unit       text,
    UNIQUE NULLS NOT DISTINCT (domain, tenant_id, factory_id, machine_id, station_id, sensor_id, metric, unit)
);

-- Fixed width and free of NULL, so that it is read and written by binary COPY without parsing.
CREATE TABLE IF NOT EXISTS normalized_measurements (
    event_time timestamptz NOT NULL,
    series_id  integer NOT NULL,
    sample_key bigint NOT NULL DEFAULT 0,          -- ordinal or sample where a domain has one
    value      double precision NOT NULL,
    kafka_time timestamptz NOT NULL,
    log_id     integer NOT NULL,
    partition  integer NOT NULL,
    "offset"   bigint NOT NULL,
    ordinal    integer NOT NULL DEFAULT 0,
    PRIMARY KEY (event_time, series_id, sample_key)
);

CREATE TABLE IF NOT EXISTS window_aggregates (
    bucket_start  timestamptz NOT NULL,
    window_s      integer NOT NULL,
    series_id     integer NOT NULL,
    count_n       bigint NOT NULL,
    avg_val       double precision NOT NULL,
    m2            double precision NOT NULL,        -- sum of squared deviations from avg_val
    min_val       double precision NOT NULL,
    max_val       double precision NOT NULL,
    first_val     double precision NOT NULL,
    first_time    timestamptz NOT NULL,
    last_val      double precision NOT NULL,
    last_time     timestamptz NOT NULL,
    p50           double precision NOT NULL,
    p95           double precision NOT NULL,
    p99           double precision NOT NULL,
    base_n        integer NOT NULL,                 -- base windows that hold a sample
    coverage      double precision NOT NULL,        -- base_n over the base windows that fit
    tw_integral   double precision NOT NULL,        -- value x seconds, each value held until the next one
    tw_covered_s  double precision NOT NULL,        -- seconds that it covers; time-weighted mean: their quotient
    sketch        bytea NOT NULL,                   -- rank sketch: percentiles within 1 % of rank
    revision      integer NOT NULL DEFAULT 0,       -- times its values changed after it was final
    updated_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (window_s, bucket_start, series_id)
);
CREATE INDEX IF NOT EXISTS window_aggregates_series ON window_aggregates (series_id, window_s, bucket_start);

-- Master data: limits that hold from valid_from on, until a later row for the same target. NULL matches any.
CREATE TABLE IF NOT EXISTS analytics_spec_limits (
    spec_id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id  text,
    factory_id text,
    machine_id text,
    sensor_id  text,
    metric     text NOT NULL,
    lsl        double precision,
    usl        double precision,
    valid_from timestamptz NOT NULL DEFAULT '-infinity',
    note       text,
    CHECK (lsl IS NOT NULL OR usl IS NOT NULL),
    CHECK (lsl < usl),
    UNIQUE NULLS NOT DISTINCT (tenant_id, factory_id, machine_id, sensor_id, metric, valid_from)
);

CREATE TABLE IF NOT EXISTS anomalies (
    bucket_start timestamptz NOT NULL,
    window_s     integer NOT NULL,
    series_id    integer NOT NULL,
    detector     text NOT NULL,
    anomaly_id   uuid NOT NULL,                     -- from series, window and detector: the same on every rebuild
    severity     text NOT NULL,
    value        double precision NOT NULL,
    score        double precision NOT NULL,
    detail       jsonb NOT NULL,
    PRIMARY KEY (bucket_start, window_s, series_id, detector)
);

CREATE TABLE IF NOT EXISTS kpis (
    bucket_start timestamptz NOT NULL,
    window_s     integer NOT NULL,
    domain       text NOT NULL,
    tenant_id    text,
    factory_id   text,
    machine_id   text,
    kpi          text NOT NULL,
    value        double precision,                  -- NULL with a reason: unknown is not zero
    numerator    double precision,
    denominator  double precision,
    unit         text NOT NULL,
    reason       text,
    CHECK ((value IS NULL) = (reason IS NOT NULL)),
    UNIQUE NULLS NOT DISTINCT (bucket_start, window_s, domain, tenant_id, factory_id, machine_id, kpi)
);

-- Hours below the floor are gone by retention and are never recomputed unless restored.
CREATE TABLE IF NOT EXISTS retention_floor (
    domain     text NOT NULL,
    asset      text NOT NULL,
    floor_hour timestamptz NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (domain, asset)
);
