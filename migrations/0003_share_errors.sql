-- Above ten chunks Shapley values are sampled: each share then comes with what is not known about it.

ALTER TABLE ragblame.share
    ADD COLUMN standard_error double precision CHECK (standard_error >= 0);  -- unit of value; NULL: not sampled
