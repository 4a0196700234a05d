-- Every verdict traces to what made it: the model that read it, the numbers, the version of the thresholds and of
-- the program. NULL: the verdict was stored before these were kept; attribute the trace again to fill them.

ALTER TABLE ragblame.verdict
    ADD COLUMN support_model text,                  -- name@revision of the learned model; NULL: only rules read it
    ADD COLUMN support_probability double precision CHECK (support_probability BETWEEN 0 AND 1), -- its raw score
    ADD COLUMN premises jsonb,                      -- records.Premises but its span: enough to decide again
    ADD COLUMN probability double precision CHECK (probability BETWEEN 0 AND 1), -- the factors of severity
    ADD COLUMN is_calibrated boolean,               -- whether that probability is; false: by the rule that fired
    ADD COLUMN harm  double precision CHECK (harm BETWEEN 0 AND 1),
    ADD COLUMN seen  integer CHECK (seen >= 1);     -- traces of a week with the same signature, when last counted

ALTER TABLE ragblame.attribution_run
    ADD COLUMN program text NOT NULL DEFAULT '',    -- version of ragblame that decided
    ADD COLUMN thresholds_digest text NOT NULL DEFAULT ''; -- of the thresholds' values then

-- The same failure, seen from the document: chunks of one document share it.
ALTER TABLE ragblame.triage_item
    ADD COLUMN document text NOT NULL DEFAULT '';   -- names the document and the cause; '': no document is known
CREATE INDEX ON ragblame.triage_item USING hash (document);

-- A stored version of the thresholds never changes: verdicts point at it.
CREATE FUNCTION ragblame.keep_thresholds() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.version <> OLD.version OR NEW.thresholds <> OLD.thresholds THEN
        RAISE EXCEPTION 'thresholds % were stored and never change: store another version', OLD.version;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER keep_thresholds BEFORE UPDATE ON ragblame.calibration
    FOR EACH ROW EXECUTE FUNCTION ragblame.keep_thresholds();
