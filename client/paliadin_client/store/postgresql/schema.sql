-- What paliadin remembers of pushes, responses and windows: version 1.
-- Whoever runs this owns the tables, and the app connects as the same role, or as a member of it:
--     GRANT the_owner TO the_app;

CREATE SCHEMA IF NOT EXISTS paliadin;

-- The version of what is below. `paliadin store init` changes both in one transaction.
CREATE TABLE paliadin.version (number integer NOT NULL);
INSERT INTO paliadin.version VALUES (1);

-- Each push that was stored, for as long as a sidecar may send it once more.
CREATE TABLE paliadin.pushes (
    webhook_id text PRIMARY KEY,
    turn text NOT NULL,
    stored_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX pushes_by_age ON paliadin.pushes (stored_at);

-- The push of each turn that counts most. Its body goes when nobody asks for it any more.
CREATE TABLE paliadin.turns (
    turn text PRIMARY KEY,          -- the submitted id, else the turn's own
    turn_id text NOT NULL,          -- the turn's own
    file text NOT NULL,             -- these three are its rank
    answered boolean NOT NULL,
    revision bigint NOT NULL,
    body bytea,                     -- the callback's JSON
    stored_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX turns_by_own_id ON paliadin.turns (turn_id) WHERE turn_id <> turn;
CREATE INDEX turns_by_age ON paliadin.turns (stored_at);
CREATE INDEX turns_with_body ON paliadin.turns (stored_at) WHERE body IS NOT NULL;

-- What the backend said of a turn to the process that submitted it.
CREATE TABLE paliadin.replies (
    turn text PRIMARY KEY,
    reply bytea NOT NULL,
    left_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX replies_by_age ON paliadin.replies (left_at);

-- Each user's window: whose it is, on which host, and which turn has it until when.
CREATE TABLE paliadin.windows (
    name text PRIMARY KEY,
    user_id text NOT NULL,
    turn_id text,
    host text,
    expires_at timestamptz,
    used_at timestamptz NOT NULL DEFAULT now()
);

-- Answers are nobody else's. Nobody is granted anything here, and what somebody's default
-- privileges have granted is taken back: from everyone, and from the roles in whose name
-- Supabase's REST interface reads. Row security without a policy is the second line: it shows no
-- row to a role that was granted a table all the same, unless it is the owner or bypasses it.
DO $$
DECLARE
    grantee text;
BEGIN
    FOR grantee IN
        SELECT 'PUBLIC' UNION ALL
        SELECT quote_ident(rolname) FROM pg_catalog.pg_roles
        WHERE rolname IN ('anon', 'authenticated', 'service_role')
    LOOP
        EXECUTE 'REVOKE ALL ON SCHEMA paliadin FROM ' || grantee;
        EXECUTE 'REVOKE ALL ON ALL TABLES IN SCHEMA paliadin FROM ' || grantee;
    END LOOP;
END
$$;
ALTER TABLE paliadin.version ENABLE ROW LEVEL SECURITY;
ALTER TABLE paliadin.pushes ENABLE ROW LEVEL SECURITY;
ALTER TABLE paliadin.turns ENABLE ROW LEVEL SECURITY;
ALTER TABLE paliadin.replies ENABLE ROW LEVEL SECURITY;
ALTER TABLE paliadin.windows ENABLE ROW LEVEL SECURITY;
