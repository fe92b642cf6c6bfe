-- The public face: what dashboards and people read, under the names that they already know.
-- Idempotent and forward only: CREATE OR REPLACE, so new columns go to the end of a view and none is removed.
-- Nothing here looks at the wall clock, so that a replay shows the same states.

-- Settings that the views need, written by the migration runner.
CREATE TABLE IF NOT EXISTS pipeline_setting (
    name       text PRIMARY KEY,
    value      text NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO pipeline_setting (name, value)
VALUES ('allowed_lateness_s', '60'), ('idle_partition_s', '60'), ('consumer_group', 'analytics-pipeline.v1')
ON CONFLICT (name) DO NOTHING;

-- Which topics feed a domain, written by the migration runner from the domains that are enabled.
CREATE TABLE IF NOT EXISTS domain_topic (
    domain text NOT NULL,
    topic  text COLLATE "C" NOT NULL,
    PRIMARY KEY (domain, topic)
);

-- The least over a topic's active partitions of the highest min(event time, Kafka time, arrival). A partition whose
-- newest message is older than the topic's newest by more than idle_partition_s does not hold it back.
CREATE OR REPLACE VIEW topic_watermark AS
WITH newest AS (
    SELECT topic, max(last_kafka_time) AS kafka_time FROM kafka_offset GROUP BY topic
), idle AS (
    SELECT make_interval(secs => value::double precision) AS after
    FROM pipeline_setting WHERE name = 'idle_partition_s'
)
SELECT o.topic,
       min(o.watermark_time) FILTER (WHERE o.last_kafka_time >= n.kafka_time - i.after) AS watermark,
       count(*) FILTER (WHERE o.last_kafka_time >= n.kafka_time - i.after) AS active_partitions,
       count(*) AS partitions,
       n.kafka_time AS last_kafka_time
FROM kafka_offset o JOIN newest n USING (topic) CROSS JOIN idle i
GROUP BY o.topic, n.kafka_time;

-- A domain is as far as the topic of it that is least far. A topic that never had a message does not hold it, nor does
-- one whose newest message is older than the domain's newest by more than idle_partition_s.
CREATE OR REPLACE VIEW domain_watermark AS
WITH newest AS (
    SELECT d.domain, max(w.last_kafka_time) AS kafka_time
    FROM domain_topic d JOIN topic_watermark w USING (topic) GROUP BY d.domain
), idle AS (
    SELECT make_interval(secs => value::double precision) AS after
    FROM pipeline_setting WHERE name = 'idle_partition_s'
)
SELECT d.domain,
       min(w.watermark) FILTER (WHERE w.last_kafka_time >= n.kafka_time - i.after) AS watermark,
       min(w.watermark) FILTER (WHERE w.last_kafka_time >= n.kafka_time - i.after)
           - make_interval(secs => max(s.value::double precision)) AS final_until
FROM domain_topic d
JOIN topic_watermark w USING (topic)
JOIN newest n USING (domain)
CROSS JOIN idle i
JOIN pipeline_setting s ON s.name = 'allowed_lateness_s'
GROUP BY d.domain;

-- Hours whose windows do not say yet what was drained: something of them waits to be computed, or is quarantined.
CREATE OR REPLACE VIEW unsettled_hour AS
SELECT DISTINCT domain_id, hour FROM pending_work WHERE asset IN ('normalized_measurements', 'window_aggregates')
UNION
SELECT domain_id, hour FROM partition_state
WHERE asset IN ('normalized_measurements', 'window_aggregates') AND status = 'quarantined';

-- The unit in which figures of a series are. is_known is false where its metric has a canonical unit and nobody said
-- how the unit that was sent becomes that one: such figures are in the unit as sent.
CREATE OR REPLACE VIEW series_unit AS
SELECT s.series_id, s.domain_id, s.tenant_id, s.factory_id, s.machine_id, s.station_id, s.sensor_id, s.metric, s.unit,
       m.canonical_unit,
       s.unit IS NULL OR m.canonical_unit IS NULL OR s.unit = m.canonical_unit OR u.unit IS NOT NULL AS is_known
FROM measurement_series s
LEFT JOIN (SELECT metric, min(canonical_unit) AS canonical_unit FROM analytics_units GROUP BY metric) m USING (metric)
LEFT JOIN analytics_units u ON u.metric = s.metric AND u.unit = s.unit;

-- state: provisional until the watermark passes bucket_end plus the allowed lateness, final after that, and
-- 'revised n' when its values changed n times since it was final. Not final while something below it waits.
-- count_n counts the samples that the figures rest on, also the uncertain and the censored ones; bad_n those beside
-- them. Where all are bad, count_n is 0 and the figures are NULL. late_n counts the samples of either kind whose Kafka
-- time is past the end of their base window and the allowed lateness.
CREATE OR REPLACE VIEW analytics_agg AS
SELECT a.bucket_start,
       a.bucket_start + make_interval(secs => a.window_s) AS bucket_end,
       a.window_s,
       d.domain, s.tenant_id, s.factory_id, s.machine_id, s.station_id, s.sensor_id, s.metric,
       CASE WHEN s.is_known THEN coalesce(s.canonical_unit, s.unit) ELSE s.unit END AS unit,
       nullif(a.avg_val, 'NaN') AS avg_val, nullif(a.min_val, 'NaN') AS min_val, nullif(a.max_val, 'NaN') AS max_val,
       a.count_n,
       CASE WHEN a.count_n > 1 THEN sqrt(a.m2 / (a.count_n - 1)) END AS std_val,
       nullif(a.p50, 'NaN') AS p50, nullif(a.p95, 'NaN') AS p95, nullif(a.p99, 'NaN') AS p99,
       nullif(a.first_val, 'NaN') AS first_val, nullif(a.last_val, 'NaN') AS last_val, a.coverage, a.revision,
       CASE
           WHEN a.revision > 0 THEN 'revised ' || a.revision
           WHEN w.final_until >= a.bucket_start + make_interval(secs => a.window_s) AND u.hour IS NULL THEN 'final'
           ELSE 'provisional'
       END AS state,
       CASE WHEN a.count_n > 0 THEN a.first_time END AS first_time,
       CASE WHEN a.count_n > 0 THEN a.last_time END AS last_time,
       a.updated_at,
       a.tw_integral / nullif(a.tw_covered_s, 0) AS tw_avg_val, a.tw_integral, a.tw_covered_s,
       a.bad_n, a.uncertain_n, a.censored_n, a.late_n
FROM window_aggregates a
JOIN series_unit s USING (domain_id, series_id)
JOIN domain_number d USING (domain_id)
LEFT JOIN domain_watermark w ON w.domain = d.domain
LEFT JOIN LATERAL (
    SELECT u.hour FROM unsettled_hour u
    WHERE u.domain_id = a.domain_id AND u.hour > a.bucket_start - interval '1 hour'
      AND u.hour < a.bucket_start + make_interval(secs => a.window_s)
    LIMIT 1
) u ON true;

CREATE OR REPLACE VIEW analytics_anomaly AS
SELECT x.anomaly_id,
       x.bucket_start,
       x.bucket_start + make_interval(secs => x.window_s) AS bucket_end,
       x.window_s,
       d.domain, s.tenant_id, s.factory_id, s.machine_id, s.station_id, s.sensor_id, s.metric,
       CASE WHEN s.is_known THEN coalesce(s.canonical_unit, s.unit) ELSE s.unit END AS unit,
       x.detector, x.severity, x.value, x.score, x.detail::jsonb AS detail
FROM anomalies x JOIN series_unit s USING (domain_id, series_id) JOIN domain_number d USING (domain_id);

CREATE OR REPLACE VIEW analytics_kpi AS
SELECT k.bucket_start,
       k.bucket_start + make_interval(secs => k.window_s) AS bucket_end,
       k.window_s,
       d.domain, k.tenant_id, k.factory_id, k.machine_id,
       k.kpi, k.value, k.numerator, k.denominator, k.unit, k.reason
FROM kpis k JOIN domain_number d USING (domain_id);

-- event_id: the event's own id, or else the hash of what identifies it.
CREATE OR REPLACE VIEW analytics_event AS
SELECT e.event_time AS "time",
       d.domain, coalesce(e.event_id, e.identity) AS event_id, e.tenant_id, e.factory_id, e.machine_id,
       e.entity_type, e.entity_id, e.event_type, e.user_id, e.value, e.properties::jsonb AS properties
FROM normalized_events e JOIN domain_number d USING (domain_id);

CREATE OR REPLACE VIEW analytics_event_rollup AS
SELECT r.bucket_start,
       r.bucket_start + make_interval(secs => r.window_s) AS bucket_end,
       r.window_s,
       d.domain, r.tenant_id, r.factory_id, r.machine_id, r.entity_type, r.event_type,
       r.count_n, r.sum_val, r.sum_val / nullif(r.value_n, 0) AS avg_val, r.revision,
       CASE
           WHEN r.revision > 0 THEN 'revised ' || r.revision
           WHEN w.final_until >= r.bucket_start + make_interval(secs => r.window_s) AND u.hour IS NULL THEN 'final'
           ELSE 'provisional'
       END AS state,
       r.value_n, r.updated_at
FROM event_rollups r
JOIN domain_number d USING (domain_id)
LEFT JOIN domain_watermark w ON w.domain = d.domain
LEFT JOIN LATERAL (
    SELECT u.hour FROM unsettled_hour u
    WHERE u.domain_id = r.domain_id AND u.hour > r.bucket_start - interval '1 hour'
      AND u.hour < r.bucket_start + make_interval(secs => r.window_s)
    LIMIT 1
) u ON true;

-- For how long something was in a state. What lies beyond the watermark has no seconds.
CREATE OR REPLACE VIEW analytics_state_duration AS
SELECT x.bucket_start,
       x.bucket_start + make_interval(secs => x.window_s) AS bucket_end,
       x.window_s,
       d.domain, s.tenant_id, s.factory_id, s.machine_id, s.station_id, s.sensor_id, s.metric AS kind, x.state,
       x.duration_us / 1e6 AS duration_s, x.revision, x.updated_at
FROM state_durations x JOIN measurement_series s USING (domain_id, series_id) JOIN domain_number d USING (domain_id);

-- What counters counted. increment: NULL with a reason where it is unknown throughout; where only some of it is, the
-- rest, and unknown_n says of how many readings it is unknown.
CREATE OR REPLACE VIEW analytics_counter AS
SELECT c.bucket_start,
       c.bucket_start + make_interval(secs => c.window_s) AS bucket_end,
       c.window_s,
       d.domain, s.tenant_id, s.factory_id, s.machine_id, s.station_id, s.sensor_id, s.metric, s.unit,
       c.increment, c.reason, c.readings, c.resets, c.roll_overs, c.swaps, c.unknown_n, c.gaps_spanned,
       c.last_reading, c.last_time, c.revision,
       CASE
           WHEN c.revision > 0 THEN 'revised ' || c.revision
           WHEN w.final_until >= c.bucket_start + make_interval(secs => c.window_s) AND u.hour IS NULL THEN 'final'
           ELSE 'provisional'
       END AS state,
       c.updated_at
FROM counter_increments c
JOIN measurement_series s USING (domain_id, series_id)
JOIN domain_number d USING (domain_id)
LEFT JOIN domain_watermark w ON w.domain = d.domain
LEFT JOIN LATERAL (
    SELECT u.hour FROM unsettled_hour u
    WHERE u.domain_id = c.domain_id AND u.hour > c.bucket_start - interval '1 hour'
      AND u.hour < c.bucket_start + make_interval(secs => c.window_s)
    LIMIT 1
) u ON true;

-- Where each partition stands, under the name that the services before this one used.
CREATE OR REPLACE VIEW worker_checkpoints AS
SELECT s.value AS consumer_group,
       o.topic, o.partition, o.epoch, o.next_offset,
       CASE WHEN o.high_offset IS NOT NULL THEN greatest(o.high_offset - o.next_offset, 0) END AS lag,
       o.watermark_time, o.updated_at
FROM kafka_offset o JOIN pipeline_setting s ON s.name = 'consumer_group';

-- Dead letters by what went wrong. Their payloads are not public.
CREATE OR REPLACE VIEW pipeline_dead_letters AS
SELECT x.hour, d.domain, x.stage, x.topic, x.reason, count(*) AS dead_letters,
       min(x.arrived_at) AS first_arrived_at, max(x.arrived_at) AS last_arrived_at
FROM dead_letters x JOIN domain_number d USING (domain_id)
GROUP BY x.hour, d.domain, x.stage, x.topic, x.reason;

-- What each domain partition holds, and what is still to be done to it. quarantined: its content was refused and
-- waits for better input or for 'analytics-pipeline gates release'.
CREATE OR REPLACE VIEW partition_status AS
WITH pending AS (
    SELECT asset, hour, domain_id, count(*) AS items, min(created_at) AS oldest_at, bool_and(held) AS held
    FROM pending_work GROUP BY asset, hour, domain_id
)
SELECT asset, hour, d.domain,
       CASE
           WHEN p.status = 'quarantined' THEN 'quarantined'
           WHEN f.attempts IS NOT NULL THEN 'failed'
           WHEN m.items > 0 THEN 'pending'
           ELSE 'done'
       END AS state,
       coalesce(m.items, 0) AS pending_items,
       m.oldest_at AS oldest_pending_at,
       p.rows, p.rows_failed, p.status AS gate, f.attempts, f.next_try_at, f.error AS last_error, p.updated_at,
       p.rows_superseded
FROM partition_state p
FULL JOIN pending m USING (asset, hour, domain_id)
LEFT JOIN partition_failure f USING (asset, hour, domain_id)
JOIN domain_number d USING (domain_id);
