-- Where Dagster keeps its runs and events (dagster.yaml names it): the pipeline's database, another schema.
-- Dagster creates its own tables there. Idempotent and forward only.

DO $$
BEGIN
    -- CREATE SCHEMA IF NOT EXISTS asks for the right to create one even where it exists.
    IF to_regnamespace('dagster') IS NULL THEN
        CREATE SCHEMA dagster;
    END IF;
END $$;
