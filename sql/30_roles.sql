-- Two group roles: analytics_writer runs the pipeline and is no superuser, analytics_reader reads the public
-- views and nothing else. Give them to logins: GRANT analytics_reader TO dashboards.
-- Roles belong to the whole cluster. Where this role may not create them, an administrator runs
--   CREATE ROLE analytics_writer NOLOGIN; CREATE ROLE analytics_reader NOLOGIN;
-- and the next migration finds them and grants. Idempotent and forward only.

DO $$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['analytics_writer', 'analytics_reader'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
            EXCEPTION
                WHEN insufficient_privilege THEN
                    RAISE NOTICE 'migrate: role % was not created, this role may not; remedy: have an administrator run CREATE ROLE % NOLOGIN, then migrate again', role_name, role_name;
                WHEN duplicate_object OR unique_violation THEN
                    NULL;  -- a migration of another database made it at the same moment
            END;
        END IF;
    END LOOP;
END
$$;

DO $$
DECLARE
    schema_name text := current_schema();
    view_name text;
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'analytics_writer') THEN
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO analytics_writer', schema_name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %I TO analytics_writer', schema_name);
        EXECUTE format('GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA %I TO analytics_writer', schema_name);
        -- What was applied is the migration runner's to say.
        EXECUTE format('REVOKE INSERT, UPDATE, DELETE ON %I.schema_migration FROM analytics_writer', schema_name);
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'analytics_reader') THEN
        EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA %I FROM analytics_reader', schema_name);
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO analytics_reader', schema_name);
        FOREACH view_name IN ARRAY ARRAY[
            'analytics_agg', 'analytics_anomaly', 'series_unit', 'analytics_kpi', 'analytics_event', 'analytics_event_rollup',
            'analytics_state_duration', 'analytics_counter', 'worker_checkpoints', 'topic_watermark', 'domain_watermark', 'pipeline_dead_letters',
            'partition_status', 'ingest_hourly',
            'iot_measurements', 'lab_results', 'ai_analytics_events', 'recent_events'
        ] LOOP
            EXECUTE format('GRANT SELECT ON %I.%I TO analytics_reader', schema_name, view_name);
        END LOOP;
    END IF;
END
$$;
