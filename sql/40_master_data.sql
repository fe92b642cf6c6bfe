-- An edit of master data asks for what it touches, so that it is computed again. Idempotent and forward only.
--
-- Each statement that edits a table of master data notes the rows that it changed; once, at the commit, all that a
-- transaction noted becomes pending work. So the lock below is held for milliseconds and not for as long as somebody's
-- editor keeps a transaction open, and 10,000 rows cost one statement. Whoever computes holds the same lock, shared,
-- around its commit, and looks whether the version that it read still stands; else it asks for its work again itself.

-- When a factory's wall times are which moments. UTC where nobody says.
CREATE OR REPLACE FUNCTION factory_zone(tenant text, factory text, moment timestamptz) RETURNS text
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT coalesce((
        SELECT f.zone FROM analytics_factories f
        WHERE f.factory_id = factory AND (f.tenant_id IS NULL OR f.tenant_id = tenant) AND f.valid_from <= moment
        ORDER BY f.tenant_id IS NULL, f.valid_from DESC LIMIT 1), 'UTC')
$$;

INSERT INTO master_data_table (table_name, target, scope, begins, ends, stale, remarks) VALUES
    ('analytics_spec_limits', '{tenant_id,factory_id,machine_id,sensor_id,metric}',
     '{tenant_id,factory_id,machine_id,sensor_id,metric}', 'valid_from', NULL, '{anomalies,kpis}', '{spec_id,note}'),
    ('analytics_control_limits', '{tenant_id,factory_id,machine_id,sensor_id,metric}',
     '{tenant_id,factory_id,machine_id,sensor_id,metric}', 'valid_from', NULL, '{anomalies}', '{note}'),
    ('analytics_calibration', '{tenant_id,factory_id,machine_id,sensor_id,metric}',
     '{tenant_id,factory_id,machine_id,sensor_id,metric}', 'valid_from', NULL, '{window_aggregates}', '{note}'),
    -- All series of the metric: limits that are given in this unit hold for series of other units too.
    ('analytics_units', '{metric,unit}', '{metric}', '''-infinity''::timestamptz', '''infinity''::timestamptz',
     '{window_aggregates,anomalies,kpis}', '{note}'),
    ('analytics_counter_limits', '{tenant_id,factory_id,machine_id,sensor_id,metric}',
     '{tenant_id,factory_id,machine_id,sensor_id,metric}', 'valid_from', NULL, '{window_aggregates}', '{note}'),
    ('analytics_detector_settings', '{tenant_id,factory_id,machine_id,sensor_id,metric,detector}',
     '{tenant_id,factory_id,machine_id,sensor_id,metric}', 'valid_from', NULL, '{anomalies}', '{note}'),
    ('analytics_factories', '{tenant_id,factory_id}', '{tenant_id,factory_id}', 'valid_from', NULL, '{kpis}', '{note}'),
    -- All of the factory: a line's figures are made of those of its machines, and of others when one comes or goes.
    ('analytics_equipment', '{tenant_id,factory_id,equipment_id}', '{tenant_id,factory_id}', 'valid_from', NULL,
     '{kpis}', '{note}'),
    ('analytics_shifts', '{tenant_id,factory_id,shift}', '{tenant_id,factory_id}', 'valid_from', NULL, '{kpis}',
     '{note}'),
    -- A shift of a day ends the next day at the latest.
    ('analytics_shift_exceptions', '{tenant_id,factory_id,shift,on_date}', '{tenant_id,factory_id}',
     'on_date::timestamp AT TIME ZONE factory_zone(tenant_id, factory_id, on_date::timestamptz)',
     '(on_date + 2)::timestamp AT TIME ZONE factory_zone(tenant_id, factory_id, on_date::timestamptz)',
     '{kpis}', '{note}'),
    ('analytics_planned_stops', '{tenant_id,factory_id,machine_id,begins_at}', '{tenant_id,factory_id,machine_id}',
     'begins_at', 'ends_at', '{kpis}', '{reason,note}'),
    ('analytics_products', '{product_id}', '{}', '''-infinity''::timestamptz', '''infinity''::timestamptz', '{}',
     '{name,note}'),
    ('analytics_planned_time', '{tenant_id,factory_id,machine_id,product_id}', '{tenant_id,factory_id,machine_id}',
     'valid_from', NULL, '{kpis}', '{note}'),
    ('analytics_machine_run', '{tenant_id,factory_id,machine_id}', '{tenant_id,factory_id,machine_id}', 'valid_from',
     NULL, '{kpis}', '{note}'),
    ('analytics_state_classes', '{machine_type,state}', '{machine_type}', 'valid_from', NULL, '{kpis}', '{note}'),
    ('analytics_stop_reasons', '{reason}', '{}', '''-infinity''::timestamptz', '''infinity''::timestamptz', '{}',
     '{description,note}'),
    ('analytics_stop_assignments', '{tenant_id,factory_id,machine_id,begins_at}', '{tenant_id,factory_id,machine_id}',
     'begins_at', 'ends_at', '{kpis}', '{assigned_by,assigned_at,note}'),
    ('analytics_targets', '{tenant_id,factory_id,machine_id,kpi}', '{tenant_id,factory_id,machine_id}', 'valid_from',
     NULL, '{kpis}', '{note}')
ON CONFLICT (table_name) DO UPDATE SET
    target = excluded.target, scope = excluded.scope, begins = excluded.begins, ends = excluded.ends,
    stale = excluded.stale, remarks = excluded.remarks;

CREATE OR REPLACE FUNCTION note_master_data_edit() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    remarks text[] := (SELECT t.remarks FROM master_data_table t WHERE t.table_name = TG_TABLE_NAME);
    before jsonb;
    after jsonb;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION '%: this transaction is %, it would miss hours that are computed while it is open', TG_TABLE_NAME, current_setting('transaction_isolation')
            USING HINT = 'edit master data in a READ COMMITTED transaction';
    END IF;
    IF TG_OP = 'INSERT' THEN
        SELECT jsonb_agg(to_jsonb(r) - remarks) INTO after FROM new_rows r;
    ELSIF TG_OP = 'DELETE' THEN
        SELECT jsonb_agg(to_jsonb(r) - remarks) INTO before FROM old_rows r;
    ELSIF TG_OP = 'UPDATE' THEN
        -- An update that leaves a row as it was, but for remarks, changes no figure.
        SELECT jsonb_agg(o.row) INTO before FROM (
            SELECT to_jsonb(r) - remarks AS row FROM old_rows r EXCEPT ALL SELECT to_jsonb(r) - remarks FROM new_rows r) o;
        SELECT jsonb_agg(n.row) INTO after FROM (
            SELECT to_jsonb(r) - remarks AS row FROM new_rows r EXCEPT ALL SELECT to_jsonb(r) - remarks FROM old_rows r) n;
    ELSE
        EXECUTE format('SELECT jsonb_agg(to_jsonb(r) - $1) FROM %I r', TG_TABLE_NAME) INTO before USING remarks;
    END IF;
    IF before IS NOT NULL OR after IS NOT NULL THEN
        INSERT INTO master_data_edit (table_name, rows_before, rows_after) VALUES (TG_TABLE_NAME, before, after);
        INSERT INTO master_data_commit VALUES (pg_current_xact_id()) ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END
$$;

-- The rows of a table that this transaction edited, each with the span of time for which it held or holds, and the
-- names by which it is found whose figures it is about.
CREATE OR REPLACE FUNCTION edited_master_data(spec master_data_table) RETURNS TABLE (
    tenant_id text, factory_id text, machine_id text, sensor_id text, metric text, machine_type text,
    valid_from timestamptz, valid_until timestamptz)
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    names CONSTANT text[] := '{tenant_id,factory_id,machine_id,sensor_id,metric,machine_type}';
    scope text := (SELECT string_agg(CASE WHEN name = ANY(spec.scope) THEN quote_ident(name) ELSE 'NULL' END
                                     || '::text AS scope_' || at, ', ' ORDER BY at)
                   FROM unnest(names) WITH ORDINALITY u (name, at));
    target text := (SELECT string_agg(quote_ident(name), ', ') FROM unnest(spec.target) name);
BEGIN
    -- Each edited row up to the next row of the same target as it is in the end: if the row that held at a moment was
    -- this one and a later one has taken it over, then that row is new and covers the moment itself.
    RETURN QUERY EXECUTE format($sql$
        WITH edited AS (
            SELECT r.*, ROW(%2$s)::text COLLATE "C" AS target_key
            FROM master_data_edit n, unnest(ARRAY[n.rows_before, n.rows_after]) rows,
                 jsonb_populate_recordset(NULL::%1$I, rows) r
            WHERE n.transaction_id = pg_current_xact_id() AND n.version IS NULL AND n.table_name = %1$L
        ), affected AS (
            SELECT *, false AS stored FROM edited
            UNION ALL
            SELECT *, true FROM (SELECT *, ROW(%2$s)::text COLLATE "C" AS target_key FROM %1$I WHERE %5$L) t
            WHERE target_key IN (SELECT target_key FROM edited)
        ), placed AS (
            SELECT *, %3$s AS span_begins FROM affected
        ), span AS (
            SELECT *, coalesce(%4$s, min(span_begins) FILTER (WHERE stored) OVER (
                       PARTITION BY target_key ORDER BY span_begins GROUPS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING),
                       'infinity') AS span_ends
            FROM placed
        )
        SELECT q.scope_1, q.scope_2, q.scope_3, q.scope_4, q.scope_5, q.scope_6, q.span_begins, q.span_ends
        FROM (SELECT %6$s, span_begins, span_ends FROM span WHERE NOT stored) q
    $sql$, spec.table_name, target, spec.begins, coalesce(spec.ends, 'NULL::timestamptz'), spec.ends IS NULL, scope);
END
$$;

-- Pending work for what an edit of one table touches, in the transaction of the edit.
CREATE OR REPLACE FUNCTION invalidate_master_data(spec master_data_table) RETURNS void
LANGUAGE sql SET search_path FROM CURRENT AS $$
    WITH edited AS MATERIALIZED (
        SELECT * FROM edited_master_data(spec)
    ), span AS (
        SELECT tenant_id, factory_id, machine_id, sensor_id, metric, valid_from, valid_until FROM edited
        WHERE machine_type IS NULL
        UNION ALL
        -- Of a type of machine: the machines that ever were of it.
        SELECT q.tenant_id, q.factory_id, q.equipment_id, NULL, NULL, e.valid_from, e.valid_until
        FROM edited e
        JOIN (SELECT DISTINCT tenant_id, factory_id, equipment_id, machine_type FROM analytics_equipment) q
            USING (machine_type)
    ), touched AS (
        -- One join for each of the names that tell most, so that thousands of rows meet thousands of series by hash.
        SELECT s.domain_id, s.series_id, e.valid_from, e.valid_until
        FROM span e JOIN measurement_series s ON s.metric = e.metric AND s.sensor_id = e.sensor_id
        WHERE e.sensor_id IS NOT NULL
          AND (e.machine_id IS NULL OR e.machine_id = s.machine_id)
          AND (e.factory_id IS NULL OR e.factory_id = s.factory_id)
          AND (e.tenant_id IS NULL OR e.tenant_id = s.tenant_id)
        UNION ALL
        SELECT s.domain_id, s.series_id, e.valid_from, e.valid_until
        FROM span e JOIN measurement_series s ON s.machine_id = e.machine_id
        WHERE e.sensor_id IS NULL AND e.machine_id IS NOT NULL
          AND (e.metric IS NULL OR e.metric = s.metric)
          AND (e.factory_id IS NULL OR e.factory_id = s.factory_id)
          AND (e.tenant_id IS NULL OR e.tenant_id = s.tenant_id)
        UNION ALL
        SELECT s.domain_id, s.series_id, e.valid_from, e.valid_until
        FROM span e JOIN measurement_series s ON s.metric = e.metric
        WHERE e.sensor_id IS NULL AND e.machine_id IS NULL AND e.metric IS NOT NULL
          AND (e.factory_id IS NULL OR e.factory_id = s.factory_id)
          AND (e.tenant_id IS NULL OR e.tenant_id = s.tenant_id)
        UNION ALL
        SELECT s.domain_id, s.series_id, e.valid_from, e.valid_until
        FROM span e CROSS JOIN measurement_series s
        WHERE e.sensor_id IS NULL AND e.machine_id IS NULL AND e.metric IS NULL
          AND (e.factory_id IS NULL OR e.factory_id = s.factory_id)
          AND (e.tenant_id IS NULL OR e.tenant_id = s.tenant_id)
    ), alike AS (
        -- Series with the same span together; a domain with many different spans gets one that covers them.
        SELECT domain_id, valid_from, valid_until, array_agg(DISTINCT series_id) AS series,
               count(*) OVER (PARTITION BY domain_id) AS spans
        FROM touched GROUP BY domain_id, valid_from, valid_until
    ), wanted AS (
        SELECT domain_id, valid_from, valid_until, CASE WHEN cardinality(series) <= 100 THEN series END AS series
        FROM alike WHERE spans <= 20
        UNION ALL
        SELECT domain_id, min(valid_from), max(valid_until), NULL FROM alike WHERE spans > 20 GROUP BY domain_id
    )
    INSERT INTO pending_work (asset, domain_id, hour, series, spans, reason)
    SELECT dependent.asset, p.domain_id, p.hour, w.series,
           CASE WHEN w.series IS NOT NULL THEN '{0,3600}'::int[] END, 'master_data'
    FROM wanted w
    JOIN domain_number d USING (domain_id)
    -- An asset is computed again where that which it is computed from holds something.
    CROSS JOIN (VALUES ('window_aggregates', 'normalized_measurements'), ('anomalies', 'window_aggregates'),
                       ('kpis', 'window_aggregates')) AS dependent (asset, input)
    JOIN partition_state p ON p.asset = dependent.input AND p.domain_id = w.domain_id AND p.rows > 0
        AND p.hour > w.valid_from - interval '1 hour' AND p.hour < w.valid_until
    WHERE dependent.asset = ANY(spec.stale)
      -- Below the floor what it is computed from is gone, and nothing is computed again.
      AND NOT EXISTS (SELECT FROM retention_floor f
                      WHERE f.domain = d.domain AND f.asset IN (dependent.input, dependent.asset)
                        AND p.hour < f.floor_hour);
$$;

CREATE OR REPLACE FUNCTION commit_master_data_edit() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    new_version bigint;
    spec master_data_table;
BEGIN
    DELETE FROM master_data_commit WHERE transaction_id = NEW.transaction_id;
    PERFORM pg_advisory_xact_lock(hashtext('analytics_pipeline.master_data'), hashtext(current_schema()));
    UPDATE input_version SET version = version + 1 WHERE name = 'master_data' RETURNING version INTO new_version;
    FOR spec IN
        SELECT t.* FROM master_data_table t
        WHERE t.stale <> '{}' AND t.table_name IN (
            SELECT n.table_name FROM master_data_edit n
            WHERE n.transaction_id = pg_current_xact_id() AND n.version IS NULL)
        ORDER BY t.table_name
    LOOP
        PERFORM invalidate_master_data(spec);
    END LOOP;
    UPDATE master_data_edit SET version = new_version
    WHERE transaction_id = pg_current_xact_id() AND version IS NULL;
    RETURN NULL;
END
$$;

-- CREATE OR REPLACE is not for constraint triggers, nor for a change of transition tables.
DO $$
DECLARE
    edited text;
BEGIN
    FOR edited IN SELECT table_name FROM master_data_table LOOP
        EXECUTE format('DROP TRIGGER IF EXISTS master_data_insert ON %I', edited);
        EXECUTE format('DROP TRIGGER IF EXISTS master_data_delete ON %I', edited);
        EXECUTE format('DROP TRIGGER IF EXISTS master_data_update ON %I', edited);
        EXECUTE format('DROP TRIGGER IF EXISTS master_data_truncate ON %I', edited);
        EXECUTE format('CREATE TRIGGER master_data_insert AFTER INSERT ON %I REFERENCING NEW TABLE AS new_rows '
                       'FOR EACH STATEMENT EXECUTE FUNCTION note_master_data_edit()', edited);
        EXECUTE format('CREATE TRIGGER master_data_delete AFTER DELETE ON %I REFERENCING OLD TABLE AS old_rows '
                       'FOR EACH STATEMENT EXECUTE FUNCTION note_master_data_edit()', edited);
        EXECUTE format('CREATE TRIGGER master_data_update AFTER UPDATE ON %I '
                       'REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows '
                       'FOR EACH STATEMENT EXECUTE FUNCTION note_master_data_edit()', edited);
        -- Before it: afterwards nobody knows what there was.
        EXECUTE format('CREATE TRIGGER master_data_truncate BEFORE TRUNCATE ON %I '
                       'FOR EACH STATEMENT EXECUTE FUNCTION note_master_data_edit()', edited);
    END LOOP;
END
$$;
DROP TRIGGER IF EXISTS master_data_commit ON master_data_commit;
CREATE CONSTRAINT TRIGGER master_data_commit AFTER INSERT ON master_data_commit
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION commit_master_data_edit();
