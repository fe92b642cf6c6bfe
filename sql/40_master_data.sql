-- An edit of master data marks the hours that it touches, so that they are computed again.
-- Idempotent and forward only.

-- Deferred to the commit: the marks are then made from what the edit leaves, and the lock below is held for
-- milliseconds and not for as long as somebody's editor keeps a transaction open. Whoever computes anomalies or
-- KPIs holds this lock shared from before its snapshot to its commit; without it, an hour whose first windows
-- arrive while an edit commits could be computed with the old limits and never be marked.
--
-- Why old and new row, each up to the next row of the same target as it is in the end, covers every moment
-- whose limit changed: if the limit at t was this row's and a later row has taken t over, then that row is new
-- and marks t itself.
CREATE OR REPLACE FUNCTION mark_spec_limit_change() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('analytics_pipeline.master_data'), hashtext(current_schema()));
    IF TG_OP IN ('UPDATE', 'DELETE') THEN
        PERFORM mark_spec_limit_span(OLD);
    END IF;
    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        PERFORM mark_spec_limit_span(NEW);
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION mark_spec_limit_span(edited analytics_spec_limits) RETURNS void
LANGUAGE sql SET search_path FROM CURRENT AS $$
    WITH span AS (
        SELECT coalesce(min(later.valid_from), 'infinity') AS valid_until
        FROM analytics_spec_limits later
        WHERE later.valid_from > edited.valid_from
          AND later.metric = edited.metric
          AND later.tenant_id IS NOT DISTINCT FROM edited.tenant_id
          AND later.factory_id IS NOT DISTINCT FROM edited.factory_id
          AND later.machine_id IS NOT DISTINCT FROM edited.machine_id
          AND later.sensor_id IS NOT DISTINCT FROM edited.sensor_id
    )
    INSERT INTO pending_mark (asset, hour, domain, scope, reason)
    SELECT dependent.asset, p.hour, p.domain, NULL, 'master_data'
    FROM partition_state p
    CROSS JOIN span
    CROSS JOIN (VALUES ('anomalies'), ('kpis')) AS dependent (asset)
    WHERE p.asset = 'window_aggregates'
      AND p.hour > edited.valid_from - interval '1 hour'
      AND p.hour < span.valid_until
      -- Below the floor the windows are gone, and nothing is computed again.
      AND NOT EXISTS (SELECT FROM retention_floor f
                      WHERE f.domain = p.domain AND f.asset = p.asset AND p.hour < f.floor_hour)
$$;

-- CREATE OR REPLACE is not for constraint triggers.
DROP TRIGGER IF EXISTS spec_limits_mark ON analytics_spec_limits;
CREATE CONSTRAINT TRIGGER spec_limits_mark
    AFTER INSERT OR UPDATE OR DELETE ON analytics_spec_limits
    DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION mark_spec_limit_change();
