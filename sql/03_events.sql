-- Where event domains land: one row an event, and its roll-up per window. Numbers go to window_aggregates.
-- Idempotent and forward only. The public names, analytics_event and analytics_event_rollup, are views.

CREATE TABLE IF NOT EXISTS events (
    event_time  timestamptz NOT NULL,
    domain      text NOT NULL,
    event_id    text NOT NULL,                      -- the event's own id, else its message position
    tenant_id   text,
    factory_id  text,
    machine_id  text,
    entity_type text NOT NULL,
    entity_id   text NOT NULL,
    event_type  text NOT NULL,
    user_id     text,
    value       double precision,
    properties  jsonb NOT NULL DEFAULT '{}',
    kafka_time  timestamptz NOT NULL,
    log_id      integer NOT NULL,
    partition   integer NOT NULL,
    "offset"    bigint NOT NULL,
    ordinal     integer NOT NULL DEFAULT 0,
    PRIMARY KEY (event_time, domain, event_id)
);
CREATE INDEX IF NOT EXISTS events_position ON events (log_id, partition, "offset");

CREATE TABLE IF NOT EXISTS event_rollups (
    bucket_start   timestamptz NOT NULL,
    window_s       integer NOT NULL,
    domain         text NOT NULL,
    tenant_id      text,
    factory_id     text,
    machine_id     text,
    entity_type    text NOT NULL,
    entity_id      text NOT NULL,
    event_type     text NOT NULL,
    count_n        bigint NOT NULL,
    value_n        bigint NOT NULL,                 -- events that carry a value: the mean is over these
    sum_val        double precision,                -- NULL where value_n is 0: unknown is not zero
    distinct_users bigint,
    users_sketch   bytea,                           -- mergeable, so that larger windows need no second look
    revision       integer NOT NULL DEFAULT 0,
    updated_at     timestamptz NOT NULL DEFAULT now(),
    UNIQUE NULLS NOT DISTINCT (bucket_start, window_s, domain, tenant_id, factory_id, machine_id, entity_type,
                               entity_id, event_type)
);
