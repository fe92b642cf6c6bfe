-- What TimescaleDB offers, where it is: asked of the server, never assumed. Idempotent and forward only.
--   no extension             plain tables; ingest_hourly is a plain view
--   Apache licence           hypertables; ingest_hourly is a plain view
--   Timescale (Community)    hypertables, compression, ingest_hourly as a continuous aggregate
-- Retention is not here: it goes by whole hours, by this project's own rule, on every server.

-- Hypertables. Filled tables are moved into chunks. Every unique key contains the time column, as it must.
DO $$
DECLARE
    extension_schema text := (SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
                              WHERE e.extname = 'timescaledb');
    target record;
BEGIN
    IF extension_schema IS NULL THEN
        RETURN;
    END IF;
    FOR target IN
        SELECT * FROM (VALUES
            ('raw_events', 'event_time', interval '1 day'),
            ('normalized_measurements', 'event_time', interval '1 day'),
            ('normalized_events', 'event_time', interval '1 day'),
            ('window_aggregates', 'bucket_start', interval '7 days'),
            ('state_changes', 'event_time', interval '7 days'),
            ('counter_readings', 'event_time', interval '1 day'),
            ('counter_increments', 'bucket_start', interval '7 days'),
            ('event_rollups', 'bucket_start', interval '7 days'),
            ('state_durations', 'bucket_start', interval '7 days'),
            ('carried_states', 'bucket_start', interval '28 days'),
            ('anomalies', 'bucket_start', interval '28 days'),
            ('kpis', 'bucket_start', interval '28 days')
        ) AS t (table_name, time_column, chunk_interval)
    LOOP
        EXECUTE format(
            'SELECT %I.create_hypertable(%L::regclass, %L::name, chunk_time_interval => %L::interval, '
            'create_default_indexes => false, if_not_exists => true, migrate_data => true)',
            extension_schema, format('%I.%I', current_schema(), target.table_name), target.time_column,
            target.chunk_interval);
    END LOOP;
END
$$;

-- Messages and bytes by hour of event time. As a continuous aggregate where the licence has them; the same
-- name and columns as a plain view elsewhere.
DO $$
DECLARE
    extension_schema text := (SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
                              WHERE e.extname = 'timescaledb');
    community boolean := coalesce(current_setting('timescaledb.license', true), '') = 'timescale';
    is_continuous boolean := false;
    made boolean := false;
BEGIN
    IF extension_schema IS NOT NULL THEN
        SELECT EXISTS (
            SELECT FROM timescaledb_information.continuous_aggregates
            WHERE view_schema = current_schema() AND view_name = 'ingest_hourly'
        ) INTO is_continuous;
    END IF;
    IF is_continuous THEN
        RETURN;
    END IF;
    IF extension_schema IS NOT NULL AND community THEN
        BEGIN
            DROP VIEW IF EXISTS ingest_hourly;
            EXECUTE format(
                'CREATE MATERIALIZED VIEW ingest_hourly '
                'WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS '
                'SELECT %I.time_bucket(interval ''1 hour'', event_time) AS hour, topic, count(*) AS messages, '
                'sum(octet_length(payload)) AS payload_bytes FROM raw_events GROUP BY 1, 2 WITH NO DATA',
                extension_schema);
            -- No start offset: late data may land in any hour, and only hours that changed are refreshed.
            EXECUTE format(
                'SELECT %I.add_continuous_aggregate_policy(''ingest_hourly''::regclass, start_offset => NULL, '
                'end_offset => interval ''1 hour'', schedule_interval => interval ''10 minutes'', '
                'if_not_exists => true)', extension_schema);
            made := true;
        EXCEPTION WHEN OTHERS THEN
            RAISE NOTICE 'migrate: the continuous aggregate ingest_hourly was refused (%); a plain view stands in', SQLERRM;
        END;
    END IF;
    IF NOT made THEN
        CREATE OR REPLACE VIEW ingest_hourly AS
        SELECT date_trunc('hour', event_time, 'UTC') AS hour, topic, count(*) AS messages,
               sum(octet_length(payload)) AS payload_bytes
        FROM raw_events GROUP BY 1, 2;
    END IF;
END
$$;

-- Compression of what is a week old. A rebuild of such an hour rewrites more rows than the default limit on
-- decompression allows: the pipeline's connections lift it (storage/engine.py).
DO $$
DECLARE
    extension_schema text := (SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
                              WHERE e.extname = 'timescaledb');
    target record;
BEGIN
    IF extension_schema IS NULL OR coalesce(current_setting('timescaledb.license', true), '') <> 'timescale' THEN
        RETURN;
    END IF;
    FOR target IN
        SELECT * FROM (VALUES
            ('raw_events', 'topic, epoch, partition', '"offset", ordinal, event_time'),
            ('normalized_measurements', 'domain_id, series_id', 'event_time, sample_key')
        ) AS t (table_name, segment_by, order_by)
    LOOP
        BEGIN
            EXECUTE format(
                'ALTER TABLE %I SET (timescaledb.compress, timescaledb.compress_segmentby = %L, '
                'timescaledb.compress_orderby = %L)', target.table_name, target.segment_by, target.order_by);
            EXECUTE format(
                'SELECT %I.add_compression_policy(%L::regclass, interval ''7 days'', if_not_exists => true)',
                extension_schema, format('%I.%I', current_schema(), target.table_name));
        EXCEPTION WHEN OTHERS THEN
            RAISE NOTICE 'migrate: compression of % was refused (%); it stays uncompressed', target.table_name, SQLERRM;
        END;
    END LOOP;
END
$$;
