-- What each capturing machine tells of itself, so that a trace which never arrived shows on the health page too.
-- Written by the recorder every half minute while it is connected: the running totals of its data folder and
-- what waits there. No secret and no text of a trace is in it.

CREATE TABLE ragblame.capture_host (
    host          text NOT NULL,                    -- as the machine calls itself
    folder        text NOT NULL,                    -- its spool; all processes that share it count together
    counts        jsonb NOT NULL DEFAULT '{}',      -- name -> total: spooled, replayed, refused, dropped_…
    waiting_files integer NOT NULL DEFAULT 0,
    waiting_bytes bigint NOT NULL DEFAULT 0,
    seen_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (host, folder)
);
