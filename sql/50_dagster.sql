-- Where Dagster keeps its runs and events: the pipeline's database, a schema beside the pipeline's own, so that two
-- pipelines in one database do not share their runs. Dagster creates its own tables there. Idempotent and forward
-- only.

DO $$
DECLARE
    dagster_schema text := current_schema() || '_dagster';
BEGIN
    -- CREATE SCHEMA IF NOT EXISTS asks for the right to create one even where it exists.
    IF to_regnamespace(quote_ident(dagster_schema)) IS NULL THEN
        EXECUTE format('CREATE SCHEMA %I', dagster_schema);
    END IF;
END $$;
