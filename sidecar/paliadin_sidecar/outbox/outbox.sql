-- name: schema#
CREATE TABLE turn (
    id INTEGER PRIMARY KEY,
    backend TEXT NOT NULL,
    persona TEXT NOT NULL,
    turn_id TEXT NOT NULL,
    submitted_turn_id TEXT,           -- hints from the turn's token
    user_id TEXT,
    revision INTEGER NOT NULL DEFAULT 0,  -- the last one given
    answered_at INTEGER,              -- when its first answer was accepted
    seen_content_key TEXT,                   -- content, or failure, that was last looked at
    sent_content_key TEXT,                   -- content, or failure, of the last revision
    fingerprint TEXT,                   -- of the file when it was last looked at
    gone_at INTEGER,                  -- when the file was seen to be gone
    seen_at INTEGER NOT NULL,
    UNIQUE (backend, persona, turn_id)
);
CREATE INDEX turn_present ON turn (backend, persona) WHERE fingerprint IS NOT NULL AND gone_at IS NULL;
CREATE INDEX turn_by_id ON turn (turn_id);
CREATE INDEX turn_by_submitted ON turn (submitted_turn_id) WHERE submitted_turn_id IS NOT NULL;
CREATE INDEX turn_finished ON turn (coalesce(gone_at, seen_at))
    WHERE gone_at IS NOT NULL OR fingerprint IS NULL;

CREATE TABLE delivery (
    id INTEGER PRIMARY KEY,
    turn INTEGER NOT NULL REFERENCES turn (id) ON DELETE CASCADE,
    revision INTEGER NOT NULL,
    webhook_id TEXT UNIQUE,           -- none for history
    state TEXT NOT NULL CHECK (state IN
        ('pending', 'delivered', 'dead', 'failed', 'superseded', 'history')),
    reason TEXT,                      -- why there is no answer, or why it was given up
    bytes INTEGER NOT NULL,
    sha256 TEXT,
    accepted_at INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    first_attempt_at INTEGER,
    attempted_at INTEGER,
    next_attempt_at INTEGER,
    refusals INTEGER NOT NULL DEFAULT 0,
    refused_at INTEGER,               -- when it was first refused
    settled_at INTEGER,               -- when it was acknowledged, given up or superseded
    body_purged_at INTEGER,                -- when its body went
    evidence REAL NOT NULL DEFAULT 0, -- how much its failures say against it
    reported_at INTEGER,                  -- when an attempt was last told by an event
    reported_attempt INTEGER NOT NULL DEFAULT 0,  -- which one that was
    root TEXT NOT NULL DEFAULT ''     -- backend and persona of its turn, while it is pending
);
CREATE INDEX delivery_of_turn ON delivery (turn);
CREATE INDEX delivery_by_state ON delivery (state, settled_at);
CREATE INDEX delivery_by_age ON delivery (accepted_at);
CREATE INDEX delivery_first_attempt ON delivery (root) WHERE state = 'pending' AND attempts = 0;
CREATE INDEX delivery_retry ON delivery (root, next_attempt_at)
    WHERE state = 'pending' AND attempts > 0;
CREATE INDEX delivery_finished ON delivery (settled_at)
    WHERE state IN ('delivered', 'failed', 'superseded') AND body_purged_at IS NULL;

-- Apart, so that the many small updates of a delivery do not rewrite megabytes.
CREATE TABLE body (
    delivery INTEGER PRIMARY KEY REFERENCES delivery (id) ON DELETE CASCADE,
    bytes BLOB NOT NULL,
    size INTEGER NOT NULL,            -- of the body as it is sent
    deflated INTEGER NOT NULL         -- how many times
);

CREATE TABLE event (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    name TEXT NOT NULL,
    turn INTEGER REFERENCES turn (id) ON DELETE CASCADE,
    fields TEXT NOT NULL              -- JSON; never an answer, a token or a secret
);
CREATE INDEX event_of_turn ON event (turn) WHERE turn IS NOT NULL;
CREATE INDEX event_of_service ON event (at) WHERE turn IS NULL;

CREATE TABLE root (
    backend TEXT NOT NULL,
    persona TEXT NOT NULL,
    path TEXT NOT NULL,
    registered_at INTEGER NOT NULL,
    PRIMARY KEY (backend, persona, path)
);

CREATE TABLE service (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    successor INTEGER NOT NULL,       -- 1 where this outbox follows one that was lost
    printed INTEGER NOT NULL DEFAULT 0,   -- the last event whose line was printed
    paused_at INTEGER,
    paused_for TEXT,
    roots TEXT NOT NULL DEFAULT '[]'  -- JSON: what the last scan that found something new found
);

-- name: create_service!
INSERT INTO service (id, successor) VALUES (1, :successor);

-- name: turn^
SELECT * FROM turn WHERE backend = :backend AND persona = :persona AND turn_id = :turn_id;

-- name: subject^
SELECT t.id AS turn, t.turn_id, t.backend, t.persona, t.submitted_turn_id, t.user_id,
       d.revision, d.webhook_id, d.state, d.bytes, d.sha256, d.accepted_at
FROM turn t JOIN delivery d ON d.turn = t.id WHERE d.id = :delivery;

-- name: add_turn^
INSERT INTO turn (backend, persona, turn_id, seen_at)
VALUES (:backend, :persona, :turn_id, :now) RETURNING *;

-- name: record_hint!
UPDATE turn SET submitted_turn_id = :submitted_turn_id, user_id = :user_id
WHERE id = :turn AND submitted_turn_id IS NULL;

-- name: update_seen!
UPDATE turn SET fingerprint = :fingerprint, seen_content_key = :content_key, gone_at = NULL WHERE id = :turn;

-- name: update_revision!
UPDATE turn SET revision = :revision, sent_content_key = :content_key, answered_at = :answered_at,
    fingerprint = :fingerprint, seen_content_key = :content_key, gone_at = NULL
WHERE id = :turn;

-- name: mark_gone!
UPDATE turn SET gone_at = :now
WHERE backend = :backend AND persona = :persona AND turn_id = :turn_id AND gone_at IS NULL;

-- name: present_files
SELECT turn_id, fingerprint FROM turn
WHERE backend = :backend AND persona = :persona AND fingerprint IS NOT NULL AND gone_at IS NULL;

-- name: supersede
UPDATE delivery INDEXED BY delivery_of_turn SET state = 'superseded', settled_at = :now
WHERE turn = :turn AND state = 'pending' RETURNING webhook_id;

-- name: add_delivery<!
INSERT INTO delivery
    (turn, revision, webhook_id, state, reason, bytes, sha256, accepted_at, next_attempt_at, root)
SELECT :turn, :revision, :webhook_id, :state, :reason, :bytes, :sha256, :now, :now,
    backend || '/' || persona FROM turn WHERE id = :turn;

-- name: add_body!
INSERT INTO body (delivery, bytes, size, deflated) VALUES (:delivery, :bytes, :size, :deflated);

-- name: body^
SELECT bytes, size, deflated FROM body WHERE delivery = :delivery;

-- Of each root the oldest and the newest that were never tried, so many of either. The roots are
-- found by skipping from one to the next in the index. The indexes are named: the planner would read
-- the whole backlog for each delivery.
-- name: first_attempts
WITH RECURSIVE roots (root) AS (
    SELECT min(root) FROM delivery INDEXED BY delivery_first_attempt
    WHERE state = 'pending' AND attempts = 0
    UNION ALL
    SELECT (SELECT min(d.root) FROM delivery d INDEXED BY delivery_first_attempt
            WHERE d.state = 'pending' AND d.attempts = 0 AND d.root > r.root)
    FROM roots r WHERE r.root IS NOT NULL)
SELECT d.*, b.size
FROM roots r CROSS JOIN delivery d CROSS JOIN body b ON b.delivery = d.id
WHERE d.id IN (
    SELECT * FROM (
        SELECT f.id FROM delivery f INDEXED BY delivery_first_attempt
        WHERE f.state = 'pending' AND f.attempts = 0 AND f.root = r.root
          AND f.turn NOT IN (SELECT value FROM json_each(:busy))
        ORDER BY f.id LIMIT :limit)
    UNION ALL
    SELECT * FROM (
        SELECT f.id FROM delivery f INDEXED BY delivery_first_attempt
        WHERE f.state = 'pending' AND f.attempts = 0 AND f.root = r.root
          AND f.turn NOT IN (SELECT value FROM json_each(:busy))
        ORDER BY f.id DESC LIMIT :limit))
  AND (:max_size IS NULL OR b.size <= :max_size)
ORDER BY d.id;

-- Of each root those that were tried before and are due for longest, so many.
-- name: retries
WITH RECURSIVE roots (root) AS (
    SELECT min(root) FROM delivery INDEXED BY delivery_retry
    WHERE state = 'pending' AND attempts > 0
    UNION ALL
    SELECT (SELECT min(d.root) FROM delivery d INDEXED BY delivery_retry
            WHERE d.state = 'pending' AND d.attempts > 0 AND d.root > r.root)
    FROM roots r WHERE r.root IS NOT NULL)
SELECT d.*, b.size
FROM roots r CROSS JOIN delivery d CROSS JOIN body b ON b.delivery = d.id
WHERE d.id IN (
    SELECT f.id FROM delivery f INDEXED BY delivery_retry
    WHERE f.state = 'pending' AND f.attempts > 0 AND f.root = r.root
      AND f.next_attempt_at <= :now
      AND f.turn NOT IN (SELECT value FROM json_each(:busy))
    ORDER BY f.next_attempt_at LIMIT :limit)
  AND (:max_size IS NULL OR b.size <= :max_size)
ORDER BY d.next_attempt_at;

-- A clock that was set back must not hold a turn for longer than its own delay.
-- name: clamp_next_attempts!
UPDATE delivery INDEXED BY delivery_retry SET next_attempt_at = :now
WHERE state = 'pending' AND attempts > 0 AND attempted_at > :now;

-- The clock was set: what durations are measured from is set with it. The index is named, so that a
-- backlog alone is read.
-- name: shift_deliveries!
UPDATE delivery INDEXED BY delivery_by_state SET accepted_at = accepted_at + :step,
    first_attempt_at = first_attempt_at + :step, attempted_at = attempted_at + :step,
    next_attempt_at = next_attempt_at + :step, refused_at = refused_at + :step
WHERE state = 'pending';

-- name: shift_turns!
UPDATE turn SET answered_at = answered_at + :step WHERE answered_at >= :since;

-- name: next_attempt_at$
WITH RECURSIVE roots (root) AS (
    SELECT min(root) FROM delivery INDEXED BY delivery_retry
    WHERE state = 'pending' AND attempts > 0
    UNION ALL
    SELECT (SELECT min(d.root) FROM delivery d INDEXED BY delivery_retry
            WHERE d.state = 'pending' AND d.attempts > 0 AND d.root > r.root)
    FROM roots r WHERE r.root IS NOT NULL)
SELECT min((
    SELECT min(d.next_attempt_at) FROM delivery d INDEXED BY delivery_retry
    WHERE d.state = 'pending' AND d.attempts > 0 AND d.root = r.root AND d.next_attempt_at > :now))
FROM roots r;

-- Until when the receiver asked to be left alone: longer than any pause of ours is its own wish.
-- name: asked_to_rest_until$
SELECT max(next_attempt_at) FROM delivery INDEXED BY delivery_retry
WHERE state = 'pending' AND attempts > 0 AND next_attempt_at - attempted_at > :ours;

-- name: record_attempt!
UPDATE delivery SET attempts = :attempts, first_attempt_at = :first_attempt_at,
    attempted_at = :now, refusals = :refusals, refused_at = :refused_at, evidence = :evidence
WHERE id = :delivery;

-- name: mark_reported!
UPDATE delivery SET reported_at = :now, reported_attempt = attempts WHERE id = :delivery;

-- One that was told after the first few takes the place of those before it: what an outage leaves
-- does not grow. Whoever counts attempts has had five minutes to see the older ones.
-- name: purge_attempt_events!
DELETE FROM event WHERE turn = :turn AND at < :now - 300000
  AND id <= (SELECT printed FROM service)
  AND name = 'delivery.attempted' AND json_extract(fields, '$.webhook_id') = :webhook_id
  AND json_extract(fields, '$.attempt') > :kept;

-- name: schedule_retry!
UPDATE delivery SET next_attempt_at = :next_attempt_at WHERE id = :delivery AND state = 'pending';

-- name: mark_delivered!
UPDATE delivery SET state = CASE WHEN sha256 IS NULL THEN 'failed' ELSE 'delivered' END,
    settled_at = :now
WHERE id = :delivery;

-- name: mark_dead!
UPDATE delivery SET state = 'dead', reason = :reason, settled_at = :now
WHERE id = :delivery AND state = 'pending';

-- name: add_event<!
INSERT INTO event (at, name, turn, fields) VALUES (:now, :name, :turn, :fields);

-- name: events
SELECT id, at, name, fields FROM event WHERE id > :after ORDER BY id LIMIT :limit;

-- name: events_of_turn
SELECT id, at, name, fields FROM event WHERE turn = :turn ORDER BY id;

-- name: last_event$
SELECT max(id) FROM event;

-- name: end_to_end_ms$
SELECT json_extract(d.fields, '$.since_accepted_ms') + json_extract(a.fields, '$.settle_ms')
FROM event d
JOIN event a ON a.turn = d.turn AND a.name IN ('turn.accepted', 'turn.revised')
    AND json_extract(a.fields, '$.webhook_id') = json_extract(d.fields, '$.webhook_id')
WHERE d.id = :event AND NOT EXISTS (
    SELECT 1 FROM event r WHERE r.turn = d.turn AND r.name = 'delivery.replayed' AND r.id < d.id
      AND json_extract(r.fields, '$.webhook_id') = json_extract(d.fields, '$.webhook_id'));

-- name: root^
SELECT registered_at FROM root WHERE backend = :backend AND persona = :persona AND path = :path;

-- name: add_root!
INSERT INTO root (backend, persona, path, registered_at) VALUES (:backend, :persona, :path, :now);

-- name: service^
SELECT * FROM service;

-- name: set_printed!
UPDATE service SET printed = :printed;

-- name: set_paused!
UPDATE service SET paused_at = :at, paused_for = :why;

-- name: set_roots!
UPDATE service SET roots = :roots WHERE roots <> :roots;

-- name: counts
SELECT state, count(*) AS n FROM delivery GROUP BY state;

-- name: oldest_pending$
SELECT min(accepted_at) FROM delivery WHERE state = 'pending';

-- name: dead_since$
SELECT count(*) FROM delivery WHERE state = 'dead' AND settled_at >= :since;

-- The last answers to those that do not get through, counted.
-- name: failing
WITH some AS (
    SELECT * FROM (
        SELECT turn, webhook_id, state FROM delivery INDEXED BY delivery_retry
        WHERE state = 'pending' AND attempts > 0 AND attempts >= :attempts
        ORDER BY next_attempt_at DESC LIMIT :limit)
    UNION ALL SELECT * FROM (
        SELECT turn, webhook_id, state FROM delivery
        WHERE state = 'dead' AND settled_at >= :since ORDER BY settled_at DESC LIMIT :limit))
SELECT d.state, json_extract(e.fields, '$.status') AS status,
       json_extract(e.fields, '$.error') AS error, json_extract(e.fields, '$.detail') AS detail,
       count(*) AS n
FROM some d JOIN event e ON e.id = (
    SELECT max(a.id) FROM event a WHERE a.turn = d.turn AND a.name = 'delivery.attempted'
      AND json_extract(a.fields, '$.webhook_id') = d.webhook_id)
GROUP BY 1, 2, 3, 4 ORDER BY n DESC;

-- name: deliveries
SELECT t.turn_id, t.backend, t.persona, t.submitted_turn_id, substr(t.user_id, 1, 8) AS user,
       d.revision, d.state, d.reason, d.bytes, d.sha256, d.webhook_id, d.attempts,
       json_extract(e.fields, '$.status') AS last_status,
       json_extract(e.fields, '$.error') AS last_error,
       json_extract(e.fields, '$.detail') AS last_detail,
       d.accepted_at, d.next_attempt_at, d.settled_at
FROM delivery d JOIN turn t ON t.id = d.turn
LEFT JOIN event e ON e.id = (
    SELECT max(a.id) FROM event a WHERE a.turn = d.turn AND a.name = 'delivery.attempted'
      AND json_extract(a.fields, '$.webhook_id') = d.webhook_id)
WHERE d.accepted_at >= :since AND (:state IS NULL OR d.state = :state)
ORDER BY d.accepted_at DESC, d.id DESC LIMIT :limit;

-- name: count_deliveries$
SELECT count(*) FROM delivery
WHERE accepted_at >= :since AND (:state IS NULL OR state = :state);

-- name: deliveries_of_turn
SELECT id, revision, state, reason, bytes, sha256, webhook_id, attempts,
       accepted_at, next_attempt_at, settled_at
FROM delivery WHERE turn = :turn ORDER BY id;

-- name: turns_named
SELECT * FROM turn WHERE turn_id = :id
UNION SELECT * FROM turn WHERE submitted_turn_id = :id;

-- Ids that begin so, each with its turn.
-- name: ids_beginning
SELECT turn_id AS id, id AS turn FROM turn WHERE turn_id >= :first AND turn_id < :end
UNION SELECT submitted_turn_id, id FROM turn
WHERE submitted_turn_id >= :first AND submitted_turn_id < :end
ORDER BY 1 LIMIT :limit;

-- name: replayable
SELECT d.id FROM delivery d
WHERE d.state IN ('delivered', 'failed', 'dead')
  AND d.id = (SELECT max(x.id) FROM delivery x WHERE x.turn = d.turn AND x.state <> 'superseded')
  AND (:turn IS NULL OR d.turn = :turn)
  AND (:dead = 0 OR d.state = 'dead')
  AND d.accepted_at >= :since
ORDER BY d.id;

-- name: replay!
UPDATE delivery SET state = 'pending', reason = CASE WHEN sha256 IS NULL THEN reason END,
    root = (SELECT backend || '/' || persona FROM turn WHERE id = turn), attempts = 0, first_attempt_at = NULL, next_attempt_at = :now,
    refusals = 0, refused_at = NULL, evidence = 0, reported_at = NULL, reported_attempt = 0, settled_at = NULL
WHERE id = :delivery AND EXISTS (SELECT 1 FROM body WHERE delivery = :delivery);

-- What is over, for upkeep. A superseded body is never sent again, also not by a replay.
-- name: expired_bodies
SELECT d.id, coalesce(length(b.bytes), 0) AS bytes
FROM delivery d INDEXED BY delivery_finished LEFT JOIN body b ON b.delivery = d.id
WHERE d.state IN ('delivered', 'failed', 'superseded') AND d.body_purged_at IS NULL
  AND d.settled_at < :before
ORDER BY d.settled_at LIMIT :limit;

-- name: mark_bodies_purged!
UPDATE delivery SET body_purged_at = :now WHERE id IN (SELECT value FROM json_each(:deliveries));

-- name: delete_bodies!
DELETE FROM body WHERE delivery IN (SELECT value FROM json_each(:deliveries));

-- Whose file is gone, or never came; whatever else touched a turn left an event.
-- name: purge_turns!
DELETE FROM turn WHERE id IN (
    SELECT t.id FROM turn t
    WHERE (t.gone_at IS NOT NULL OR t.fingerprint IS NULL)
      AND coalesce(t.gone_at, t.seen_at) < :before
      AND NOT EXISTS (
        SELECT 1 FROM delivery d WHERE d.turn = t.id AND d.state IN ('pending', 'dead'))
      AND NOT EXISTS (
        SELECT 1 FROM event e WHERE e.turn = t.id
          AND (e.at >= :before OR e.id > (SELECT printed FROM service)))
    LIMIT :limit);

-- name: purge_events!
DELETE FROM event WHERE id IN (
    SELECT id FROM event
    WHERE turn IS NULL AND at < :before AND id <= (SELECT printed FROM service)
    LIMIT :limit);
