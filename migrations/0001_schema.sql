-- The storage of ragblame: traces, their attribution and verdicts, people's reviews, and our own corpus.
--
-- Trace-side tables are range-partitioned by a time-ordered UUIDv7 trace id, so retention drops partitions
-- instead of deleting rows. Partitions of all trace-side tables share their bounds. There are no foreign keys
-- between trace-side tables on purpose: they would forbid dropping a partition; a trace and everything about
-- it are written in one transaction and dropped together.
--
-- The runner (ragblame/database.py) has made schema ragblame and extension vector, wherever that lives, and set
-- search_path to both. Text of unknown length carries no btree index (a key may not exceed 2,704 bytes): hash
-- indexes serve equality at any length.

-- Capture ---------------------------------------------------------------------------------------------------

CREATE TABLE trace (
    id            uuid PRIMARY KEY,                 -- version 7
    app           text NOT NULL,
    question      text NOT NULL,
    query         text,                             -- what the retriever was asked, when it differs
    prompt        jsonb NOT NULL DEFAULT '[]',      -- [{"role", "text"}] as really sent
    answer        text NOT NULL,
    generated     text,                             -- the model's own text, when it differs from the answer
    model         text,
    provider      text,
    status        text NOT NULL CHECK (status IN ('ok', 'error', 'cancelled', 'abandoned', 'interrupted')),
    error         text,
    started_at    timestamptz NOT NULL,
    duration_ms   double precision NOT NULL CHECK (duration_ms >= 0),
    session_id    text,
    root_run_id   uuid,                             -- LangChain's; may repeat, so only indexed
    origin        text NOT NULL,
    partial_tree  boolean NOT NULL DEFAULT false,
    tags          text[] NOT NULL DEFAULT '{}',
    metadata      jsonb NOT NULL DEFAULT '{}',
    truncated     jsonb NOT NULL DEFAULT '{}',      -- field -> true length in code points
    recorded_at   timestamptz NOT NULL DEFAULT now(),
    -- paste-a-quote search; cut because a tsvector may not exceed 1 MB: a hyphenated word is indexed whole
    -- and in parts, so 4-byte letters may need 9 bytes a code point
    search        tsvector GENERATED ALWAYS AS
                  (to_tsvector('simple', left(question, 10000) || ' ' || left(answer, 80000))) STORED
) PARTITION BY RANGE (id);
CREATE INDEX ON trace USING gin (search);
CREATE INDEX ON trace (root_run_id) WHERE root_run_id IS NOT NULL;
CREATE INDEX ON trace USING hash (session_id) WHERE session_id IS NOT NULL;

CREATE TABLE chunk_text (                           -- content-addressed: stored once however often retrieved
    sha256        bytea PRIMARY KEY CHECK (octet_length(sha256) = 32),
    text          text NOT NULL
);

CREATE TABLE trace_chunk (
    trace_id      uuid NOT NULL,
    position      smallint NOT NULL,                -- 0-based, retrieval order
    sha256        bytea NOT NULL,
    source_table  text,
    source_id     text,                             -- row identity in PostgreSQL
    rank          integer,
    score         double precision,
    score_name    text,
    retriever_run uuid,
    truncated_from integer,
    metadata      jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (trace_id, position)
) PARTITION BY RANGE (trace_id);
CREATE INDEX ON trace_chunk USING hash (source_id) WHERE source_id IS NOT NULL;
CREATE INDEX ON trace_chunk (sha256);

-- Attribution: a rerun deletes and rewrites all of these for its trace in one transaction --------------------

CREATE TABLE attribution_run (                      -- what the worker did about a trace, and with what
    trace_id      uuid PRIMARY KEY,
    state         text NOT NULL CHECK (state IN ('done', 'failed')),
    error         text,                             -- one line with the next step
    scorer        text,
    revision      text,
    is_own_model  boolean,
    is_fit        boolean,
    fitness       jsonb,                            -- {"answer_nats", "unigram_nats", "reason"}
    notes         text[] NOT NULL DEFAULT '{}',
    scored_coalitions integer NOT NULL DEFAULT 0,
    forwards      integer NOT NULL DEFAULT 0,
    backwards     integer NOT NULL DEFAULT 0,
    tokens        bigint NOT NULL DEFAULT 0,
    seconds       double precision NOT NULL DEFAULT 0,
    finished_at   timestamptz NOT NULL DEFAULT now()
) PARTITION BY RANGE (trace_id);

CREATE TABLE alignment (
    trace_id      uuid NOT NULL,
    position      smallint NOT NULL,
    state         text NOT NULL CHECK (state IN ('exact', 'normalised', 'partial', 'missing')),
    message       smallint,                         -- index into trace.prompt
    start_at      integer,                          -- code points in that message
    end_at        integer,
    found_start   integer,                          -- the part of the chunk that stands there
    found_end     integer,
    PRIMARY KEY (trace_id, position)
) PARTITION BY RANGE (trace_id);

CREATE TABLE answer_span (
    trace_id      uuid NOT NULL,
    span          smallint NOT NULL,
    start_at      integer NOT NULL,                 -- code points in trace.answer, half open
    end_at        integer NOT NULL CHECK (end_at > start_at),
    kind          text NOT NULL CHECK (kind IN ('number', 'date', 'name', 'quote', 'negation', 'clause')),
    sentence_start integer NOT NULL,
    sentence_end  integer NOT NULL,
    PRIMARY KEY (trace_id, span)
) PARTITION BY RANGE (trace_id);

CREATE TABLE attribution (
    trace_id      uuid NOT NULL,
    span          smallint NOT NULL,
    method        text NOT NULL,
    v_all         double precision,                 -- nats
    v_none        double precision,
    reliance      double precision,                 -- v_all - v_none
    noise_floor   double precision NOT NULL DEFAULT 0,
    completeness_gap double precision,
    settings_hash text NOT NULL,
    scored_coalitions integer NOT NULL DEFAULT 0,
    forwards      integer NOT NULL DEFAULT 0,
    backwards     integer NOT NULL DEFAULT 0,
    tokens        bigint NOT NULL DEFAULT 0,
    seconds       double precision NOT NULL DEFAULT 0,
    PRIMARY KEY (trace_id, span, method)
) PARTITION BY RANGE (trace_id);

CREATE TABLE share (
    trace_id      uuid NOT NULL,
    span          smallint NOT NULL,
    method        text NOT NULL,
    position      smallint NOT NULL,                -- the chunk
    value         double precision NOT NULL,        -- nats for shapley
    PRIMARY KEY (trace_id, span, method, position)
) PARTITION BY RANGE (trace_id);

CREATE TABLE coalition_values (                     -- all v(S) per answer token: what-if needs no model
    trace_id      uuid PRIMARY KEY,
    positions     smallint[] NOT NULL,              -- players; bit i of a mask is positions[i]
    masks         bigint[] NOT NULL,
    token_starts  integer[] NOT NULL,               -- code points in trace.answer
    token_ends    integer[] NOT NULL,
    log_probs     bytea NOT NULL                    -- float32, little endian, [coalition, token] row-major
) PARTITION BY RANGE (trace_id);

CREATE TABLE token_heat (
    trace_id      uuid NOT NULL,
    span          smallint NOT NULL,
    position      smallint NOT NULL,                -- the chunk
    method        text NOT NULL,
    starts        integer[] NOT NULL,               -- code points in the chunk's text
    ends          integer[] NOT NULL,
    heat          real[] NOT NULL,
    PRIMARY KEY (trace_id, span, position, method)
) PARTITION BY RANGE (trace_id);

CREATE TABLE verdict (
    trace_id      uuid NOT NULL,
    span          smallint NOT NULL,
    verdict       text NOT NULL CHECK (verdict IN
                  ('grounded', 'distorted', 'known already', 'fabricated', 'undetermined')),
    cause         text,
    basis         text NOT NULL,
    support       text NOT NULL CHECK (support IN ('entailed', 'contradicted', 'absent', 'unclear')),
    support_rule  text NOT NULL,
    evidence_position smallint,                     -- chunk of the best sentence
    evidence_start integer,                         -- code points in that chunk's text
    evidence_end  integer,
    stated        text,                             -- what the chunk says instead
    support_positions smallint[] NOT NULL DEFAULT '{}', -- further chunks that say the same
    evidence      smallint[] NOT NULL DEFAULT '{}', -- chunk positions
    confidence    double precision CHECK (confidence BETWEEN 0 AND 1),
    severity      double precision NOT NULL CHECK (severity BETWEEN 0 AND 1),
    explanation   text NOT NULL,
    fix           text,
    other_causes  text[] NOT NULL DEFAULT '{}',
    reliance_measurable boolean NOT NULL DEFAULT true,
    thresholds_version text NOT NULL,
    PRIMARY KEY (trace_id, span)
) PARTITION BY RANGE (trace_id);

-- People ------------------------------------------------------------------------------------------------------

-- A rerun renumbers spans: items and reviews follow their offsets to the new number. Where a rerun cuts the
-- answer differently, a reviewed span that is no more gets a negative number (its reviews have the same one).
CREATE TABLE triage_item (                          -- one flagged span in the queue
    trace_id      uuid NOT NULL,
    span          smallint NOT NULL,                -- answer_span.span; negative: see above
    state         text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'reviewed', 'snoozed')),
    severity      double precision NOT NULL,
    signature     text NOT NULL,                    -- groups the same failure
    assignee      text,
    leased_until  timestamptz,
    version       integer NOT NULL DEFAULT 1,       -- optimistic lock between two reviewers
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (trace_id, span)
) PARTITION BY RANGE (trace_id);
CREATE INDEX ON triage_item (state, severity DESC, trace_id DESC, span);
CREATE INDEX ON triage_item USING hash (signature);

CREATE TABLE review (
    trace_id      uuid NOT NULL,
    id            uuid NOT NULL,
    span          smallint NOT NULL,
    start_at      integer NOT NULL,                 -- offsets, so that a rerun which cuts other spans keeps the review
    end_at        integer NOT NULL,
    reviewer      text NOT NULL,
    verdict       text NOT NULL CHECK (verdict IN
                  ('grounded', 'distorted', 'known already', 'fabricated', 'undetermined')),
    cause         text,
    note          text NOT NULL DEFAULT '',
    flagged_as    text,                             -- the machine's verdict at that time
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (trace_id, id)
) PARTITION BY RANGE (trace_id);
CREATE INDEX ON review (trace_id, span);

CREATE TABLE calibration (                          -- thresholds are versioned data
    version       text PRIMARY KEY,
    thresholds    jsonb NOT NULL,
    is_active     boolean NOT NULL DEFAULT false,
    note          text NOT NULL DEFAULT '',
    created_at    timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX calibration_one_active ON calibration (is_active) WHERE is_active;

-- Partitions ----------------------------------------------------------------------------------------------------

-- Smallest UUIDv7 of an instant: 48 bits of Unix milliseconds, the rest zero.
CREATE FUNCTION uuid_floor(at timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT (lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$$;

CREATE FUNCTION trace_side_tables() RETURNS text[] LANGUAGE sql IMMUTABLE AS $$
    SELECT ARRAY['trace', 'trace_chunk', 'attribution_run', 'alignment', 'answer_span', 'attribution', 'share',
        'coalition_values', 'token_heat', 'verdict', 'triage_item', 'review']
$$;

-- The weekly partitions that [from_at, to_at] touches and that do not exist; weeks start on Monday, UTC.
CREATE FUNCTION missing_partitions(from_at timestamptz, to_at timestamptz)
RETURNS TABLE (parent text, week timestamp) LANGUAGE sql STABLE AS $$
    SELECT p.parent, w.week
    FROM generate_series(date_trunc('week', from_at AT TIME ZONE 'UTC'), to_at AT TIME ZONE 'UTC', '7 days') AS w (week),
         unnest(ragblame.trace_side_tables()) WITH ORDINALITY AS p (parent, place)
    WHERE to_regclass(format('ragblame.%I', p.parent || to_char(w.week, '_IYYY"w"IW'))) IS NULL
    ORDER BY w.week, p.place
$$;

-- Creates one weekly partition, moving into it what of that week already fell into the default one. Attaching
-- leaves writers of other weeks alone, where CREATE TABLE ... PARTITION OF would lock the whole table.
CREATE FUNCTION ensure_partition(parent text, week timestamp) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    part     text := parent || to_char(week, '_IYYY"w"IW');
    spare    text := parent || '_default';
    low      uuid := ragblame.uuid_floor(week AT TIME ZONE 'UTC');
    high     uuid := ragblame.uuid_floor((week + interval '7 days') AT TIME ZONE 'UTC');
    key      text := CASE parent WHEN 'trace' THEN 'id' ELSE 'trace_id' END;
    stored   text;                                  -- all columns but generated ones
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('ragblame.ensure_partition', 0));  -- two workers, one partition
    IF to_regclass(format('ragblame.%I', part)) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE ragblame.%I (LIKE ragblame.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS '
        'INCLUDING GENERATED INCLUDING STORAGE)', part, parent);
    IF to_regclass(format('ragblame.%I', spare)) IS NOT NULL THEN
        SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) INTO stored FROM pg_attribute
        WHERE attrelid = format('ragblame.%I', parent)::regclass AND attnum > 0 AND NOT attisdropped
            AND attgenerated = '';
        EXECUTE format('LOCK TABLE ragblame.%I IN ACCESS EXCLUSIVE MODE', spare);  -- attaching needs it anyway
        EXECUTE format('WITH moved AS (DELETE FROM ragblame.%I WHERE %I >= %L AND %I < %L RETURNING %s) '
            'INSERT INTO ragblame.%I (%s) SELECT %s FROM moved',
            spare, key, low, key, high, stored, part, stored, stored);
    END IF;
    EXECUTE format('ALTER TABLE ragblame.%I ATTACH PARTITION ragblame.%I FOR VALUES FROM (%L) TO (%L)',
        parent, part, low, high);
    RETURN true;
END
$$;

-- All of them in one transaction, for imports of old traces; a busy database makes them one by one instead
-- (ragblame.database.ensure_partitions), so that no lock is held for long. Returns how many were made.
CREATE FUNCTION ensure_partitions(from_at timestamptz, to_at timestamptz) RETURNS integer LANGUAGE sql AS $$
    SELECT count(*) FILTER (WHERE ragblame.ensure_partition(m.parent, m.week))::integer
    FROM ragblame.missing_partitions(from_at, to_at) AS m
$$;

-- Whatever falls outside the prepared weeks (a stepped clock, a long pause) still finds a home.
DO $$
DECLARE parent text;
BEGIN
    FOREACH parent IN ARRAY trace_side_tables() LOOP
        EXECUTE format('CREATE TABLE ragblame.%I PARTITION OF ragblame.%I DEFAULT', parent || '_default', parent);
    END LOOP;
END
$$;
SELECT ensure_partitions(now(), now() + interval '28 days');

-- Corpus ----------------------------------------------------------------------------------------------------------

CREATE TABLE embedding_model (                      -- one HNSW index a model: dimensions differ
    id            smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name          text NOT NULL UNIQUE,
    dimensions    integer NOT NULL CHECK (dimensions BETWEEN 1 AND 4000)
);

CREATE TABLE document (
    id            uuid PRIMARY KEY,                 -- version 7
    source        text NOT NULL UNIQUE,             -- path or URI as ingested
    title         text NOT NULL,
    sha256        bytea NOT NULL,                   -- of the text: ingesting the same again does nothing
    metadata      jsonb NOT NULL DEFAULT '{}',
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE chunk (
    id            uuid PRIMARY KEY,                 -- version 7; what a trace's source_id points at
    document_id   uuid NOT NULL REFERENCES document (id) ON DELETE CASCADE,
    position      integer NOT NULL,                 -- 0-based within the document: neighbours are position +- 1
    text          text NOT NULL,
    model_id      smallint NOT NULL REFERENCES embedding_model (id),
    embedding     halfvec NOT NULL,                 -- dimensions by model; cast in the index expression
    metadata      jsonb NOT NULL DEFAULT '{}',
    created_at    timestamptz NOT NULL DEFAULT now(),
    search        tsvector GENERATED ALWAYS AS (to_tsvector('english', left(text, 90000))) STORED,
    UNIQUE (document_id, position)
);
CREATE INDEX ON chunk USING gin (search);
CREATE INDEX ON chunk USING gin (metadata jsonb_path_ops);
