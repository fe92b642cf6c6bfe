-- An edit of master data asks for what it touches, so that it is computed again. Idempotent and forward only.
--
-- Each statement that edits limits notes the rows that it changed; once, at the commit, all that a transaction noted
-- becomes pending work. So the lock below is held for milliseconds and not for as long as somebody's editor keeps a
-- transaction open, and 10,000 limits cost one statement. Whoever computes holds the same lock, shared, around its
-- commit, and looks whether the version that it read still stands; else it asks for its hours again itself.

CREATE TABLE IF NOT EXISTS spec_limit_edit (
    edit_id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    transaction_id xid8 NOT NULL DEFAULT pg_current_xact_id(),
    rows           analytics_spec_limits[] NOT NULL
);

CREATE OR REPLACE FUNCTION note_spec_limit_edit() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'analytics_spec_limits: this transaction is %, it would miss hours that are computed while it is open', current_setting('transaction_isolation')
            USING HINT = 'edit master data in a READ COMMITTED transaction';
    END IF;
    IF TG_OP = 'INSERT' THEN
        INSERT INTO spec_limit_edit (rows) SELECT array_agg(ROW(r.*)::analytics_spec_limits) FROM new_rows r HAVING count(*) > 0;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO spec_limit_edit (rows) SELECT array_agg(ROW(r.*)::analytics_spec_limits) FROM old_rows r HAVING count(*) > 0;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO spec_limit_edit (rows)
        SELECT array_agg(ROW(r.*)::analytics_spec_limits)
        FROM (SELECT * FROM old_rows UNION ALL SELECT * FROM new_rows) r HAVING count(*) > 0;
    ELSE
        INSERT INTO spec_limit_edit (rows) SELECT array_agg(r) FROM analytics_spec_limits r HAVING count(*) > 0;
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION invalidate_edited_limits() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    edited analytics_spec_limits[];
BEGIN
    -- The first of a transaction's notes takes them all.
    WITH taken AS (DELETE FROM spec_limit_edit WHERE transaction_id = pg_current_xact_id() RETURNING rows)
    SELECT array_agg(r) INTO edited FROM taken, unnest(taken.rows) r;
    IF edited IS NULL THEN
        RETURN NULL;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('analytics_pipeline.master_data'), hashtext(current_schema()));
    UPDATE input_version SET version = version + 1 WHERE name = 'master_data';
    -- Each edited row up to the next row of the same target as it is in the end: if the limit at a moment was this
    -- row's and a later row has taken it over, then that row is new and covers the moment itself.
    WITH affected AS (
        SELECT *, false AS stored FROM unnest(edited)
        UNION ALL
        SELECT *, true FROM analytics_spec_limits
    ), span AS (
        SELECT m.*, coalesce(min(valid_from) FILTER (WHERE stored) OVER (
                   PARTITION BY tenant_id, factory_id, machine_id, sensor_id, metric ORDER BY valid_from
                   GROUPS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING), 'infinity') AS valid_until
        FROM affected m
    ), touched AS (
        -- One join for each of the names that tell most, so that thousands of limits meet thousands of series by hash.
        SELECT s.domain_id, s.series_id, e.valid_from, e.valid_until
        FROM span e JOIN measurement_series s ON s.metric = e.metric AND s.sensor_id = e.sensor_id
        WHERE NOT e.stored AND e.sensor_id IS NOT NULL
          AND (e.machine_id IS NULL OR e.machine_id = s.machine_id)
          AND (e.factory_id IS NULL OR e.factory_id = s.factory_id)
          AND (e.tenant_id IS NULL OR e.tenant_id = s.tenant_id)
        UNION ALL
        SELECT s.domain_id, s.series_id, e.valid_from, e.valid_until
        FROM span e JOIN measurement_series s ON s.metric = e.metric AND s.machine_id = e.machine_id
        WHERE NOT e.stored AND e.sensor_id IS NULL AND e.machine_id IS NOT NULL
          AND (e.factory_id IS NULL OR e.factory_id = s.factory_id)
          AND (e.tenant_id IS NULL OR e.tenant_id = s.tenant_id)
        UNION ALL
        SELECT s.domain_id, s.series_id, e.valid_from, e.valid_until
        FROM span e JOIN measurement_series s ON s.metric = e.metric
        WHERE NOT e.stored AND e.sensor_id IS NULL AND e.machine_id IS NULL
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
    JOIN partition_state p ON p.asset = 'window_aggregates' AND p.domain_id = w.domain_id AND p.rows > 0
        AND p.hour > w.valid_from - interval '1 hour' AND p.hour < w.valid_until
    CROSS JOIN (VALUES ('anomalies'), ('kpis')) AS dependent (asset)
    -- Below the floor the windows are gone, and nothing is computed again.
    WHERE NOT EXISTS (SELECT FROM retention_floor f
                      WHERE f.domain = d.domain AND f.asset = p.asset AND p.hour < f.floor_hour);
    RETURN NULL;
END
$$;

-- CREATE OR REPLACE is not for constraint triggers, nor for a change of transition tables.
DROP TRIGGER IF EXISTS spec_limits_insert ON analytics_spec_limits;
DROP TRIGGER IF EXISTS spec_limits_delete ON analytics_spec_limits;
DROP TRIGGER IF EXISTS spec_limits_update ON analytics_spec_limits;
DROP TRIGGER IF EXISTS spec_limits_truncate ON analytics_spec_limits;
DROP TRIGGER IF EXISTS spec_limits_commit ON spec_limit_edit;
CREATE TRIGGER spec_limits_insert AFTER INSERT ON analytics_spec_limits
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION note_spec_limit_edit();
CREATE TRIGGER spec_limits_delete AFTER DELETE ON analytics_spec_limits
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION note_spec_limit_edit();
CREATE TRIGGER spec_limits_update AFTER UPDATE ON analytics_spec_limits
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION note_spec_limit_edit();
-- Before it: afterwards nobody knows what there was.
CREATE TRIGGER spec_limits_truncate BEFORE TRUNCATE ON analytics_spec_limits
    FOR EACH STATEMENT EXECUTE FUNCTION note_spec_limit_edit();
CREATE CONSTRAINT TRIGGER spec_limits_commit AFTER INSERT ON spec_limit_edit
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION invalidate_edited_limits();
