-- Master data: what people maintain beside the messages. Declared once more, with unit and description of every
-- column, in analytics_pipeline/master_data/; a test holds the two to each other. What an edit makes stale stands in
-- 40_master_data.sql. Idempotent and forward only.
--   valid_from   a row holds from then on, until the next row with the same target; -infinity: since ever
--   begins_at, ends_at   a row holds for this span of time, half-open
--   tenant_id, factory_id, machine_id, sensor_id   NULL matches any; of several rows that match, the one holds that
--                names the most
--   note         for people; no figure depends on it

-- ------------------------------------------------------------------ measurements

-- Limits of the customer: what is beyond is out of specification.
CREATE TABLE IF NOT EXISTS analytics_spec_limits (
    spec_id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id  text,
    factory_id text,
    machine_id text,
    sensor_id  text,
    metric     text NOT NULL,
    lsl        double precision CHECK (lsl NOT IN ('NaN', 'Infinity', '-Infinity')),
    usl        double precision CHECK (usl NOT IN ('NaN', 'Infinity', '-Infinity')),
    valid_from timestamptz NOT NULL DEFAULT '-infinity'
        CHECK (valid_from = '-infinity' OR valid_from BETWEEN '1970-01-01Z' AND '9999-12-31Z'),
    unit       text,
    note       text,
    CHECK (lsl IS NOT NULL OR usl IS NOT NULL),
    CHECK (lsl < usl),
    UNIQUE NULLS NOT DISTINCT (tenant_id, factory_id, machine_id, sensor_id, metric, valid_from)
);

-- Centre and sigma of control charts; without a row they are estimated from the first windows.
CREATE TABLE IF NOT EXISTS analytics_control_limits (
    tenant_id  text,
    factory_id text,
    machine_id text,
    sensor_id  text,
    metric     text NOT NULL,
    centre     double precision NOT NULL CHECK (centre NOT IN ('NaN', 'Infinity', '-Infinity')),
    sigma      double precision NOT NULL CHECK (sigma > 0 AND sigma < 'Infinity'),
    valid_from timestamptz NOT NULL DEFAULT '-infinity'
        CHECK (valid_from = '-infinity' OR valid_from BETWEEN '1970-01-01Z' AND '9999-12-31Z'),
    unit       text,
    note       text,
    UNIQUE NULLS NOT DISTINCT (tenant_id, factory_id, machine_id, sensor_id, metric, valid_from)
);

-- What a sensor's value must be corrected by, in the unit in which it was sent: gain x value + offset.
CREATE TABLE IF NOT EXISTS analytics_calibration (
    tenant_id  text,
    factory_id text,
    machine_id text,
    sensor_id  text,
    metric     text NOT NULL,
    gain       double precision NOT NULL DEFAULT 1 CHECK (gain <> 0 AND abs(gain) <= 1e12),
    "offset"   double precision NOT NULL DEFAULT 0 CHECK (abs("offset") <= 1e12),
    valid_from timestamptz NOT NULL DEFAULT '-infinity'
        CHECK (valid_from = '-infinity' OR valid_from BETWEEN '1970-01-01Z' AND '9999-12-31Z'),
    note       text,
    CHECK (sensor_id IS NOT NULL OR machine_id IS NOT NULL),
    UNIQUE NULLS NOT DISTINCT (tenant_id, factory_id, machine_id, sensor_id, metric, valid_from)
);

-- Units in which values of a metric are sent, and the one in which its figures are: factor x value + shift. What a
-- unit is does not change with time: a corrected factor corrects all of the past.
CREATE TABLE IF NOT EXISTS analytics_units (
    metric         text NOT NULL,
    unit           text NOT NULL,
    canonical_unit text NOT NULL,
    factor         double precision NOT NULL CHECK (factor > 0 AND factor <= 1e30),
    shift          double precision NOT NULL DEFAULT 0 CHECK (abs(shift) <= 1e12),
    note           text,
    CHECK (unit <> canonical_unit OR (factor = 1 AND shift = 0)),
    UNIQUE (metric, unit)
);

-- Of counters: where they roll over, and how fast they can rise.
CREATE TABLE IF NOT EXISTS analytics_counter_limits (
    tenant_id  text,
    factory_id text,
    machine_id text,
    sensor_id  text,
    metric     text NOT NULL,
    modulus    bigint CHECK (modulus > 1),
    max_rate   double precision CHECK (max_rate > 0 AND max_rate < 'Infinity'),
    valid_from timestamptz NOT NULL DEFAULT '-infinity'
        CHECK (valid_from = '-infinity' OR valid_from BETWEEN '1970-01-01Z' AND '9999-12-31Z'),
    note       text,
    CHECK (modulus IS NOT NULL OR max_rate IS NOT NULL),
    UNIQUE NULLS NOT DISTINCT (tenant_id, factory_id, machine_id, sensor_id, metric, valid_from)
);

-- What a detector does for some series, where its defaults do not fit.
CREATE TABLE IF NOT EXISTS analytics_detector_settings (
    tenant_id  text,
    factory_id text,
    machine_id text,
    sensor_id  text,
    metric     text NOT NULL,
    detector   text NOT NULL,
    enabled    boolean NOT NULL DEFAULT true,
    raises     boolean,
    parameters jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(parameters) = 'object'),
    valid_from timestamptz NOT NULL DEFAULT '-infinity'
        CHECK (valid_from = '-infinity' OR valid_from BETWEEN '1970-01-01Z' AND '9999-12-31Z'),
    note       text,
    UNIQUE NULLS NOT DISTINCT (tenant_id, factory_id, machine_id, sensor_id, metric, detector, valid_from)
);

-- ------------------------------------------------------------------ factories and machines

-- In which zone a factory's wall times are, and when its day begins.
CREATE TABLE IF NOT EXISTS analytics_factories (
    tenant_id  text,
    factory_id text NOT NULL,
    zone       text NOT NULL CHECK (timezone(zone, '2000-01-01Z'::timestamptz) IS NOT NULL),
    day_start  time NOT NULL DEFAULT '00:00',
    valid_from timestamptz NOT NULL DEFAULT '-infinity'
        CHECK (valid_from = '-infinity' OR valid_from BETWEEN '1970-01-01Z' AND '9999-12-31Z'),
    note       text,
    UNIQUE NULLS NOT DISTINCT (tenant_id, factory_id, valid_from)
);

-- What stands in a factory: machines and lines, each in a line or in the factory itself.
CREATE TABLE IF NOT EXISTS analytics_equipment (
    tenant_id    text,
    factory_id   text NOT NULL,
    equipment_id text NOT NULL,
    kind         text NOT NULL CHECK (kind IN ('machine', 'line')),
    parent_id    text CHECK (parent_id <> equipment_id),
    role         text NOT NULL DEFAULT 'plain' CHECK (role IN ('counting', 'bottleneck', 'both', 'plain')),
    machine_type text,
    valid_from   timestamptz NOT NULL DEFAULT '-infinity'
        CHECK (valid_from = '-infinity' OR valid_from BETWEEN '1970-01-01Z' AND '9999-12-31Z'),
    note         text,
    CHECK (kind = 'machine' OR (role = 'plain' AND machine_type IS NULL)),
    CHECK (parent_id IS NOT NULL OR role = 'plain'),
    UNIQUE NULLS NOT DISTINCT (tenant_id, factory_id, equipment_id, valid_from)
);

-- Shifts of a normal week, in wall times of the factory. One that ends at or before its begin ends the next day.
CREATE TABLE IF NOT EXISTS analytics_shifts (
    tenant_id  text,
    factory_id text NOT NULL,
    shift      text NOT NULL,
    weekdays   text NOT NULL CHECK (weekdays ~ '^(none|1?2?3?4?5?6?7?)$' AND weekdays <> ''),
    begins     time NOT NULL,
    ends       time NOT NULL,
    valid_from timestamptz NOT NULL DEFAULT '-infinity'
        CHECK (valid_from = '-infinity' OR valid_from BETWEEN '1970-01-01Z' AND '9999-12-31Z'),
    note       text,
    UNIQUE NULLS NOT DISTINCT (tenant_id, factory_id, shift, valid_from)
);

-- Days on which a shift differs from the week: other times, an extra shift, or, without times, none.
CREATE TABLE IF NOT EXISTS analytics_shift_exceptions (
    tenant_id  text,
    factory_id text NOT NULL,
    shift      text NOT NULL,
    on_date    date NOT NULL CHECK (on_date BETWEEN '1970-01-01' AND '9999-12-31'),
    begins     time,
    ends       time,
    note       text,
    CHECK ((begins IS NULL) = (ends IS NULL)),
    UNIQUE NULLS NOT DISTINCT (tenant_id, factory_id, shift, on_date)
);

-- When a machine was not meant to run: maintenance, breaks. Not part of the planned busy time.
CREATE TABLE IF NOT EXISTS analytics_planned_stops (
    tenant_id  text,
    factory_id text,
    machine_id text,
    begins_at  timestamptz NOT NULL CHECK (begins_at BETWEEN '1970-01-01Z' AND '9999-12-31Z'),
    ends_at    timestamptz NOT NULL CHECK (ends_at BETWEEN '1970-01-01Z' AND '9999-12-31Z'),
    reason     text,
    note       text,
    CHECK (begins_at < ends_at),
    CHECK (factory_id IS NOT NULL OR machine_id IS NOT NULL),
    UNIQUE NULLS NOT DISTINCT (tenant_id, factory_id, machine_id, begins_at)
);

-- ------------------------------------------------------------------ production

CREATE TABLE IF NOT EXISTS analytics_products (
    product_id text NOT NULL,
    name       text,
    note       text,
    UNIQUE (product_id)
);

-- Planned time per piece (PRI) of a product on a machine.
CREATE TABLE IF NOT EXISTS analytics_planned_time (
    tenant_id  text,
    factory_id text,
    machine_id text,
    product_id text,
    pri_s      double precision NOT NULL CHECK (pri_s > 0 AND pri_s < 'Infinity'),
    valid_from timestamptz NOT NULL DEFAULT '-infinity'
        CHECK (valid_from = '-infinity' OR valid_from BETWEEN '1970-01-01Z' AND '9999-12-31Z'),
    note       text,
    UNIQUE NULLS NOT DISTINCT (tenant_id, factory_id, machine_id, product_id, valid_from)
);

-- What a machine runs from a time on, where its messages do not say. Neither product nor order: nothing.
CREATE TABLE IF NOT EXISTS analytics_machine_run (
    tenant_id  text,
    factory_id text,
    machine_id text NOT NULL,
    product_id text,
    order_id   text,
    valid_from timestamptz NOT NULL CHECK (valid_from BETWEEN '1970-01-01Z' AND '9999-12-31Z'),
    note       text,
    UNIQUE NULLS NOT DISTINCT (tenant_id, factory_id, machine_id, valid_from)
);

-- What a state that machines send means for their time elements.
CREATE TABLE IF NOT EXISTS analytics_state_classes (
    machine_type text,
    state        text NOT NULL,
    state_class  text NOT NULL
        CHECK (state_class IN ('production', 'setup', 'delay', 'stop', 'failure', 'off')),
    valid_from   timestamptz NOT NULL DEFAULT '-infinity'
        CHECK (valid_from = '-infinity' OR valid_from BETWEEN '1970-01-01Z' AND '9999-12-31Z'),
    note         text,
    UNIQUE NULLS NOT DISTINCT (machine_type, state, valid_from)
);

CREATE TABLE IF NOT EXISTS analytics_stop_reasons (
    reason      text NOT NULL,
    description text,
    note        text,
    UNIQUE (reason)
);

-- Why a machine stood still, said afterwards. A stop is split by several rows that divide its time.
CREATE TABLE IF NOT EXISTS analytics_stop_assignments (
    tenant_id   text,
    factory_id  text,
    machine_id  text NOT NULL,
    begins_at   timestamptz NOT NULL CHECK (begins_at BETWEEN '1970-01-01Z' AND '9999-12-31Z'),
    ends_at     timestamptz NOT NULL CHECK (ends_at BETWEEN '1970-01-01Z' AND '9999-12-31Z'),
    reason      text NOT NULL,
    assigned_by text NOT NULL DEFAULT session_user,
    assigned_at timestamptz NOT NULL DEFAULT now(),
    note        text,
    CHECK (begins_at < ends_at),
    UNIQUE NULLS NOT DISTINCT (tenant_id, factory_id, machine_id, begins_at)
);

-- What a KPI of a machine should be.
CREATE TABLE IF NOT EXISTS analytics_targets (
    tenant_id  text,
    factory_id text,
    machine_id text,
    kpi        text NOT NULL,
    target     double precision NOT NULL CHECK (target NOT IN ('NaN', 'Infinity', '-Infinity')),
    direction  text NOT NULL DEFAULT 'at_least' CHECK (direction IN ('at_least', 'at_most')),
    valid_from timestamptz NOT NULL DEFAULT '-infinity'
        CHECK (valid_from = '-infinity' OR valid_from BETWEEN '1970-01-01Z' AND '9999-12-31Z'),
    note       text,
    UNIQUE NULLS NOT DISTINCT (tenant_id, factory_id, machine_id, kpi, valid_from)
);

-- An empty text is no value: files cannot tell the two apart.
DO $$
DECLARE
    place record;
BEGIN
    FOR place IN
        SELECT c.table_name, c.column_name, left(c.table_name || '_' || c.column_name || '_not_empty', 63) AS name
        FROM information_schema.columns c JOIN information_schema.tables t USING (table_schema, table_name)
        WHERE c.table_schema = current_schema() AND c.table_name LIKE 'analytics\_%' AND c.udt_name = 'text'
          AND t.table_type = 'BASE TABLE'
    LOOP
        IF NOT EXISTS (SELECT FROM pg_constraint WHERE conname = place.name
                       AND conrelid = place.table_name::regclass) THEN
            EXECUTE format('ALTER TABLE %I ADD CONSTRAINT %I CHECK (%I <> '''')', place.table_name, place.name,
                           place.column_name);
        END IF;
    END LOOP;
END
$$;

-- ------------------------------------------------------------------ edits

-- What an edit of each table makes stale: written by 40_master_data.sql.
CREATE TABLE IF NOT EXISTS master_data_table (
    table_name text PRIMARY KEY,
    target     text[] NOT NULL,   -- columns: rows with the same values are about the same thing
    scope      text[] NOT NULL,   -- of those, the names by which it is found whose figures a row is about
    begins     text NOT NULL,     -- expression over a row: from when on it holds
    ends       text,              -- expression over a row: until when; NULL: until the next row of its target
    stale      text[] NOT NULL,   -- assets that read it
    remarks    text[] NOT NULL    -- columns that no figure depends on
);

-- Every edit that could change a figure: what stood there before and after, who, and as which version.
CREATE TABLE IF NOT EXISTS master_data_edit (
    edit_id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    transaction_id xid8 NOT NULL DEFAULT pg_current_xact_id(),
    table_name     text NOT NULL,
    rows_before    jsonb,
    rows_after     jsonb,
    version        bigint,         -- of the master data from this edit on; NULL until the commit
    edited_by      text NOT NULL
        DEFAULT coalesce(nullif(current_setting('analytics_pipeline.edited_by', true), ''), session_user),
    edited_at      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS master_data_edit_open ON master_data_edit (transaction_id) WHERE version IS NULL;

-- A transaction that has noted edits, from its first note to its commit.
CREATE TABLE IF NOT EXISTS master_data_commit (
    transaction_id xid8 PRIMARY KEY
);
