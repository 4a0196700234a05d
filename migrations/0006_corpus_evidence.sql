-- What the corpus was asked about a flagged span, and the rows in it that say what the span should be: evidence
-- of a cause that lies behind the prompt. A rerun rewrites both, as everything else about a trace.

CREATE TABLE ragblame.corpus_look (                 -- one span that the corpus was asked about
    trace_id      uuid NOT NULL,
    span          smallint NOT NULL,
    source        text NOT NULL,                    -- the table that was asked, with its schema
    rows          bigint,                           -- of that table, as PostgreSQL estimated
    k             integer NOT NULL,                 -- rows the retriever asked for
    is_k_known    boolean NOT NULL,                 -- false: as many as were retrieved
    is_filtered   boolean NOT NULL,                 -- the retriever's filter was known
    seconds       double precision NOT NULL,        -- in PostgreSQL
    searches      jsonb NOT NULL,                   -- records.CorpusSearch, in the order they ran
    notes         text[] NOT NULL DEFAULT '{}',
    PRIMARY KEY (trace_id, span)
) PARTITION BY RANGE (trace_id);

CREATE TABLE ragblame.corpus_evidence (             -- a row of the corpus that says what a span should be
    trace_id      uuid NOT NULL,
    span          smallint NOT NULL,
    place         smallint NOT NULL,                -- 0: the closest to being retrieved
    source        text NOT NULL,                    -- its table, with the schema
    row_id        text NOT NULL,
    state         text NOT NULL CHECK (state IN ('entailed', 'contradicted')), -- contradicted: another value
    rule          text NOT NULL,                    -- of the support check
    cause         text,                             -- why the row was not in the prompt; NULL: not known
    start_at      integer NOT NULL,                 -- the sentence, code points in the row's text of that time
    end_at        integer NOT NULL,
    quote         text NOT NULL,                    -- that sentence; '' where the retriever's filter hides the row
    stated        text,                             -- the other value
    rank          bigint,                           -- for the retriever's query; NULL: not known
    is_exact      boolean NOT NULL,                 -- the rank was counted over the whole table
    question_rank bigint,                           -- for the user's question, where the query is a rewritten one
    found_by      text[] NOT NULL DEFAULT '{}',     -- searches, strongest first
    passes_filter boolean,
    is_newer      boolean,                          -- than the answer
    created_at    timestamptz,
    joined_with   text,                             -- row id of the neighbour without which it does not say it
    PRIMARY KEY (trace_id, span, place)
) PARTITION BY RANGE (trace_id);

ALTER TABLE ragblame.verdict                        -- {message, start, end} of each guilty line of the prompt
    ADD COLUMN prompt_evidence integer[] NOT NULL DEFAULT '{}';

CREATE OR REPLACE FUNCTION ragblame.trace_side_tables() RETURNS text[] LANGUAGE sql IMMUTABLE AS $$
    SELECT ARRAY['trace', 'trace_chunk', 'attribution_run', 'alignment', 'answer_span', 'attribution', 'share',
        'coalition_values', 'token_heat', 'verdict', 'triage_item', 'review', 'corpus_look', 'corpus_evidence']
$$;

CREATE TABLE ragblame.corpus_look_default PARTITION OF ragblame.corpus_look DEFAULT;
CREATE TABLE ragblame.corpus_evidence_default PARTITION OF ragblame.corpus_evidence DEFAULT;

-- every week that has traces, so that retention finds what belongs to them
SELECT ragblame.ensure_partition(added.parent, to_date(right(c.relname, 7), 'IYYY"w"IW')::timestamp)
FROM pg_class c, unnest(ARRAY['corpus_look', 'corpus_evidence']) AS added (parent)
WHERE c.relnamespace = 'ragblame'::regnamespace AND c.relname ~ '^trace_[0-9]{4}w[0-9]{2}$';
