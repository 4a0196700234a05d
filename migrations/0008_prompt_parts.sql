-- A prompt repeats its chunks, and they are stored already: such a message is kept in parts, a text or the position
-- of the chunk whose text stands there. That halves what an answer takes on disk and in the server's time.

CREATE FUNCTION ragblame.whole_prompt(trace uuid, prompt jsonb) RETURNS jsonb
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT coalesce(jsonb_agg(
        CASE WHEN message ? 'parts'
             THEN jsonb_build_object('role', message -> 'role', 'text', (
                 SELECT coalesce(string_agg(
                     CASE jsonb_typeof(part)
                         WHEN 'number' THEN (
                             SELECT t.text FROM ragblame.trace_chunk c JOIN ragblame.chunk_text t USING (sha256)
                             WHERE c.trace_id = trace AND c.position = part::smallint)
                         ELSE part #>> '{}'
                     END, '' ORDER BY place), '')
                 FROM jsonb_array_elements(message -> 'parts') WITH ORDINALITY AS p(part, place)))
             ELSE message END
        ORDER BY number), '[]')
    FROM jsonb_array_elements(prompt) WITH ORDINALITY AS m(message, number)
$$;

COMMENT ON COLUMN ragblame.trace.prompt IS
    '[{role, text}] or [{role, parts}] as really sent; whole_prompt(id, prompt) has all of it as text';
COMMENT ON FUNCTION ragblame.whole_prompt(uuid, jsonb) IS
    'The messages of a trace''s prompt as [{role, text}]';
