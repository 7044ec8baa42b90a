-- All that belongs to a table of documents, but for its indexes, made once (schema.py fills in the names in braces).
CREATE TABLE IF NOT EXISTS {table} (
  document_id text PRIMARY KEY,
  document text NOT NULL,
  fields jsonb NOT NULL DEFAULT '{{}}',
  text_hash text NOT NULL,
  fingerprint text NOT NULL,
  embedding halfvec({dim}) NOT NULL
);

-- One row, of what the documents are encoded with.
CREATE TABLE {meta} (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  format integer NOT NULL,
  model text NOT NULL,
  fingerprint text NOT NULL,
  dim integer NOT NULL,
  shortlist text NOT NULL,
  version text NOT NULL
);
INSERT INTO {meta} VALUES (true, {format}, {model}, {fingerprint}, {dim}, {shortlist_text}, {version});

-- The search. All statements in it are dynamic: each is planned for its values, and no column can hide a variable. The
-- server's settings are put back at the end; an error on the way puts them back too, since they are set for the
-- transaction only.
CREATE FUNCTION {search} (
  query {vectors}.vector,
  k integer DEFAULT 10,
  shortlist integer DEFAULT NULL,
  filter jsonb DEFAULT NULL
) RETURNS TABLE (document_id text, score double precision, document text, fields jsonb)
LANGUAGE plpgsql STABLE SET search_path TO pg_catalog, {vectors}, pg_temp AS $nestling$
DECLARE
  query_vector {full} := query::{full};
  candidate_count integer := greatest(k, coalesce(shortlist, greatest({candidates}, {times} * k)));
  fits text := 'true';
  exact boolean := coalesce(shortlist = 0, false);
  ef text := coalesce(current_setting('hnsw.ef_search', true), '40');
  scan text := coalesce(current_setting('hnsw.iterative_scan', true), 'off');
BEGIN
  IF query IS NULL OR coalesce(k, 0) < 1 OR shortlist < 0 THEN
    RAISE EXCEPTION 'give a query, k of 1 or more, and a shortlist of 0 (none) or more' USING ERRCODE = '22023';
  END IF;
  IF filter IS NOT NULL AND filter <> '{{}}' THEN
    IF jsonb_typeof(filter) <> 'object' THEN
      RAISE EXCEPTION 'filter must be an object, field to value or to an array of values' USING ERRCODE = '22023';
    END IF;
    SELECT string_agg(coalesce((
        SELECT '(' || string_agg(format('d.fields @> %L::jsonb', jsonb_build_object(f.key, v.value)), ' OR ') || ')'
        FROM jsonb_array_elements(
          CASE jsonb_typeof(f.value) WHEN 'array' THEN f.value ELSE jsonb_build_array(f.value) END) v
      ), 'false'), ' AND ')
      INTO fits FROM jsonb_each(filter) f;
    IF NOT exact THEN
      EXECUTE 'SELECT count(*) <= {few} FROM (SELECT FROM {table} d WHERE ' || fits || ' LIMIT {few} + 1) passing'
        INTO exact;
    END IF;
  END IF;
  IF exact THEN
    RETURN QUERY EXECUTE 'SELECT d.document_id, -(d.embedding <#> $1), d.document, d.fields FROM {table} d WHERE '
      || fits || ' ORDER BY d.embedding <#> $1, d.document_id LIMIT $2' USING query_vector, k;
    RETURN;
  END IF;
  PERFORM set_config('hnsw.ef_search', least(1000, greatest(candidate_count, ef::integer))::text, true),
    set_config('hnsw.iterative_scan', 'relaxed_order', true);
  RETURN QUERY EXECUTE 'WITH candidates AS MATERIALIZED (SELECT d.document_id, d.embedding, d.document, d.fields '
    || 'FROM {table} d WHERE ' || fits || ' ORDER BY {document_code} {operator} {query_code} LIMIT $2) '
    || 'SELECT d.document_id, -(d.embedding <#> $1), d.document, d.fields FROM candidates d '
    || 'ORDER BY d.embedding <#> $1, d.document_id LIMIT $3' USING query_vector, candidate_count, k;
  PERFORM set_config('hnsw.ef_search', ef, true), set_config('hnsw.iterative_scan', scan, true);
END
$nestling$;
COMMENT ON FUNCTION {search} IS
  'Made by nestling postgres; what with is in the table of the same name with _meta.';
