-- Alignment says more than where: which parts of the chunk are not there, and whether other places would do.

ALTER TABLE ragblame.alignment
    ADD COLUMN absent_starts integer[] NOT NULL DEFAULT '{}',  -- of a partial one: code points of the chunk's text
    ADD COLUMN absent_ends   integer[] NOT NULL DEFAULT '{}',
    ADD COLUMN is_ambiguous  boolean NOT NULL DEFAULT false;   -- the text stands elsewhere too, unclaimed
