-- Views of single domains, under the names and with the columns of the services that this pipeline replaces.
-- Idempotent and forward only, as 10_analytics_views.sql; nothing here looks at the wall clock either.
-- The domain's number is looked up once per statement, so that plans read its rows alone, by the key.

-- The sink's hypertable. unit and topic are what the last message of the series said. value is NULL where a message
-- had none: such a sample is stored as NaN.
CREATE OR REPLACE VIEW iot_measurements AS
SELECT m.event_time AS "timestamp",
       s.machine_id AS device_id,
       s.station_id AS connector_mode,
       s.metric AS component_type,
       s.sensor_id AS pin_position,
       nullif(m.value, 'NaN') AS value,
       coalesce(a.attributes::json ->> 'unit', '') AS unit,
       coalesce(a.attributes::json ->> 'topic', '') AS topic
FROM normalized_measurements m
JOIN measurement_series s USING (domain_id, series_id)
LEFT JOIN series_attributes a USING (domain_id, series_id)
WHERE m.domain_id = (SELECT domain_id FROM domain_number WHERE domain = 'iot');

-- One row per determination: the station's series, and the sample that the sample key stands for.
CREATE OR REPLACE VIEW lab_results AS
SELECT m.event_time AS "time", s.tenant_id, s.factory_id, s.station_id, n.sample_id, n.replicate,
       s.metric AS analyte, m.value, s.unit,
       -- On which side of the value the true one lies, as the message said.
       CASE m.quality WHEN 3 THEN '<' WHEN 4 THEN '>' ELSE '' END AS qualifier
FROM normalized_measurements m
JOIN measurement_series s USING (domain_id, series_id)
LEFT JOIN sample_names n USING (domain_id, sample_key)
WHERE m.domain_id = (SELECT domain_id FROM domain_number WHERE domain = 'lab');

-- The worker's table of app events; properties are JSON text with sorted keys.
CREATE OR REPLACE VIEW ai_analytics_events AS
SELECT event_time AS "timestamp", entity_id AS app_id, event_type AS event_name, user_id, properties
FROM normalized_events
WHERE domain_id = (SELECT domain_id FROM domain_number WHERE domain = 'app');

-- Product events of the 30 days before the domain's watermark, so that a replay shows the same. ttl: when the event
-- leaves this view at the latest, in seconds since 1970. "createdAt": when Kafka got the message that counts.
CREATE OR REPLACE VIEW recent_events AS
SELECT e.identity AS id,
       e.event_id AS "eventId",
       e.event_type AS "eventType",
       e.event_time AS "timestamp",
       jsonb_build_object('eventId', e.event_id, 'eventType', e.event_type, 'timestamp', e.event_time,
                          'data', e.properties::jsonb) AS data,
       extract(epoch FROM e.event_time + interval '30 days')::bigint AS ttl,
       e.kafka_time AS "createdAt"
FROM normalized_events e
WHERE e.domain_id = (SELECT domain_id FROM domain_number WHERE domain = 'product')
  AND e.event_time > coalesce((SELECT watermark FROM domain_watermark WHERE domain = 'product'), '-infinity')
                     - interval '30 days';
