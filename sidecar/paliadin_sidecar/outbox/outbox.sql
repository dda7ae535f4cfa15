-- Each statement has a name, by which `database.sql` knows it, and a sentence that says what it
-- does. Times are epoch milliseconds.

-- All tables and indexes of an outbox.
-- name: schema
CREATE TABLE turn (
    id INTEGER PRIMARY KEY,
    backend TEXT NOT NULL,
    persona TEXT NOT NULL,
    turn_id TEXT NOT NULL,
    submitted_turn_id TEXT,           -- from the turn's token, as is the next one
    user_id TEXT,
    revision INTEGER NOT NULL DEFAULT 0,  -- the last one given
    answered_at INTEGER,              -- when its first answer was accepted
    seen_content_key TEXT,            -- content, or failure, that was last seen in its file
    sent_content_key TEXT,            -- content, or failure, of the last revision
    fingerprint TEXT,                 -- of the file when it was last read
    gone_at INTEGER,                  -- when the file was seen to be gone
    seen_at INTEGER NOT NULL,
    erased_at INTEGER,                -- when all that it held was erased: it is never sent again
    UNIQUE (turn_id, backend, persona)    -- in this order, so that ids are found by it too
);
CREATE INDEX turn_present ON turn (backend, persona)
    WHERE fingerprint IS NOT NULL AND gone_at IS NULL;
CREATE INDEX turn_by_submitted ON turn (submitted_turn_id) WHERE submitted_turn_id IS NOT NULL;
CREATE INDEX turn_finished ON turn (coalesce(gone_at, seen_at))
    WHERE gone_at IS NOT NULL OR fingerprint IS NULL;

-- No id is given twice: one that was erased may be under way.
CREATE TABLE delivery (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    turn INTEGER NOT NULL REFERENCES turn (id) ON DELETE CASCADE,
    revision INTEGER NOT NULL,
    webhook_id TEXT,                  -- none for history; made of what the row's keys are
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
    body_purged_at INTEGER,
    evidence REAL NOT NULL DEFAULT 0, -- how much its failures say against it
    reported_at INTEGER,              -- when an attempt last got an event
    reported_attempt INTEGER NOT NULL DEFAULT 0,  -- which one that was
    said TEXT,                        -- what the receiver said when it last refused it
    root TEXT NOT NULL DEFAULT ''     -- backend and persona of its turn
);
CREATE UNIQUE INDEX delivery_of_turn ON delivery (turn, revision);
CREATE INDEX delivery_by_state ON delivery (state, settled_at);
CREATE INDEX delivery_by_age ON delivery (accepted_at);
CREATE INDEX delivery_first_attempt ON delivery (root) WHERE state = 'pending' AND attempts = 0;
CREATE INDEX delivery_retry ON delivery (root, next_attempt_at)
    WHERE state = 'pending' AND attempts > 0;
CREATE INDEX delivery_finished ON delivery (settled_at)
    WHERE state IN ('delivered', 'failed', 'superseded') AND body_purged_at IS NULL;

-- Apart from `delivery`, so that its many small updates do not rewrite megabytes.
CREATE TABLE body (
    delivery INTEGER PRIMARY KEY REFERENCES delivery (id) ON DELETE CASCADE,
    size INTEGER NOT NULL,            -- of the body as it is sent
    deflated INTEGER NOT NULL,        -- how many times
    bytes BLOB NOT NULL
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

-- Makes the one row of the service.
-- name: create_service
INSERT INTO service (id, successor) VALUES (1, :successor);

-- ---- Intake -------------------------------------------------------------------------------

-- Finds a turn as its file names it.
-- name: turn
SELECT * FROM turn WHERE backend = :backend AND persona = :persona AND turn_id = :turn_id;

-- Makes a turn of which only its name is known.
-- name: add_turn
INSERT INTO turn (backend, persona, turn_id, seen_at)
VALUES (:backend, :persona, :turn_id, :now) RETURNING *;

-- Makes a turn with its first revision.
-- name: add_turn_with_revision
INSERT INTO turn (backend, persona, turn_id, revision, answered_at,
    seen_content_key, sent_content_key, fingerprint, seen_at)
VALUES (:backend, :persona, :turn_id, 1, :answered_at,
    :content_key, :content_key, :fingerprint, :now);

-- Keeps what a turn's token said; the first one counts.
-- name: record_hint
INSERT INTO turn (backend, persona, turn_id, seen_at, submitted_turn_id, user_id)
VALUES (:backend, :persona, :turn_id, :now, :submitted_turn_id, :user_id)
ON CONFLICT DO UPDATE SET submitted_turn_id = excluded.submitted_turn_id,
    user_id = excluded.user_id
WHERE submitted_turn_id IS NULL AND erased_at IS NULL;

-- Keeps what was seen in a turn's file, where nothing is sent.
-- name: update_seen
UPDATE turn SET fingerprint = :fingerprint, seen_content_key = :content_key, gone_at = NULL
WHERE id = :turn;

-- Gives a turn its next revision.
-- name: update_revision
UPDATE turn SET revision = :revision, sent_content_key = :content_key,
    answered_at = :answered_at, fingerprint = :fingerprint, seen_content_key = :content_key,
    gone_at = NULL
WHERE id = :turn;

-- Keeps that a turn's file is gone, since when.
-- name: mark_gone
UPDATE turn SET gone_at = :now
WHERE backend = :backend AND persona = :persona AND turn_id = :turn_id AND gone_at IS NULL;

-- The files of a root that were there when last looked at.
-- name: present_files
SELECT turn_id, fingerprint FROM turn
WHERE backend = :backend AND persona = :persona AND fingerprint IS NOT NULL AND gone_at IS NULL;

-- Ends what is undelivered of a turn, since a later revision takes its place.
-- name: supersede
UPDATE delivery INDEXED BY delivery_of_turn SET state = 'superseded', settled_at = :now
WHERE turn = :turn AND state = 'pending' RETURNING id, webhook_id;

-- Adds a delivery that is due at once.
-- name: add_delivery
INSERT INTO delivery
    (turn, revision, webhook_id, state, reason, bytes, sha256, accepted_at, next_attempt_at, root)
VALUES (:turn, :revision, :webhook_id, 'pending', :reason, :bytes, :sha256, :now, :now, :root);

-- Adds an answer that was there before its root was watched; a second one of a turn says no more.
-- name: add_history
INSERT INTO delivery (turn, revision, state, bytes, sha256, accepted_at)
VALUES (:turn, 0, 'history', :bytes, :sha256, :now)
ON CONFLICT DO NOTHING;

-- Keeps the body that a delivery sends.
-- name: add_body
INSERT INTO body (delivery, size, deflated, bytes) VALUES (:delivery, :size, :deflated, :bytes);

-- Finds a root by what it was registered as.
-- name: root
SELECT registered_at FROM root WHERE backend = :backend AND persona = :persona AND path = :path;

-- Registers a root.
-- name: add_root
INSERT INTO root (backend, persona, path, registered_at) VALUES (:backend, :persona, :path, :now);

-- ---- The queue ----------------------------------------------------------------------------

-- Of each root the oldest and the newest that were never tried, so many of either. The roots are
-- found by skipping from one to the next in the index. The indexes are named: the planner would
-- read the whole backlog for each delivery.
-- name: first_attempts
WITH RECURSIVE roots (root) AS (
    SELECT min(root) FROM delivery INDEXED BY delivery_first_attempt
    WHERE state = 'pending' AND attempts = 0
    UNION ALL
    SELECT (SELECT min(d.root) FROM delivery d INDEXED BY delivery_first_attempt
            WHERE d.state = 'pending' AND d.attempts = 0 AND d.root > r.root)
    FROM roots r WHERE r.root IS NOT NULL)
SELECT d.id, d.turn, d.root, b.size
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
SELECT d.id, d.turn, d.root, b.size
FROM roots r CROSS JOIN delivery d CROSS JOIN body b ON b.delivery = d.id
WHERE d.id IN (
    SELECT f.id FROM delivery f INDEXED BY delivery_retry
    WHERE f.state = 'pending' AND f.attempts > 0 AND f.root = r.root
      AND f.next_attempt_at <= :now
      AND f.turn NOT IN (SELECT value FROM json_each(:busy))
    ORDER BY f.next_attempt_at LIMIT :limit)
  AND (:max_size IS NULL OR b.size <= :max_size)
ORDER BY d.next_attempt_at;

-- A delivery with its body and what its events show of its turn.
-- name: delivery
SELECT d.*, b.size, b.deflated, b.bytes AS kept,
       t.turn_id, t.backend, t.persona, t.submitted_turn_id, t.user_id
FROM delivery d JOIN body b ON b.delivery = d.id JOIN turn t ON t.id = d.turn
WHERE d.id = :delivery;

-- When the first one that was tried before is due, and when the next one is that is not due yet.
-- name: next_attempts
WITH RECURSIVE roots (root) AS (
    SELECT min(root) FROM delivery INDEXED BY delivery_retry
    WHERE state = 'pending' AND attempts > 0
    UNION ALL
    SELECT (SELECT min(d.root) FROM delivery d INDEXED BY delivery_retry
            WHERE d.state = 'pending' AND d.attempts > 0 AND d.root > r.root)
    FROM roots r WHERE r.root IS NOT NULL)
SELECT min((
    SELECT min(d.next_attempt_at) FROM delivery d INDEXED BY delivery_retry
    WHERE d.state = 'pending' AND d.attempts > 0 AND d.root = r.root)),
  min((
    SELECT min(d.next_attempt_at) FROM delivery d INDEXED BY delivery_retry
    WHERE d.state = 'pending' AND d.attempts > 0 AND d.root = r.root AND d.next_attempt_at > :now))
FROM roots r;

-- Until when the receiver asked to be left alone: a delay that is longer than any of ours is its
-- own wish.
-- name: retry_after
SELECT max(next_attempt_at) FROM delivery INDEXED BY delivery_retry
WHERE state = 'pending' AND attempts > 0 AND next_attempt_at - attempted_at > :ours;

-- The newest delivery: what has a greater id was accepted later.
-- name: newest_delivery
SELECT max(id) FROM delivery;

-- A clock that was set back while no daemon ran must not hold a turn for longer than its own delay.
-- name: clamp_next_attempts
UPDATE delivery INDEXED BY delivery_retry SET next_attempt_at = :now
WHERE state = 'pending' AND attempts > 0 AND attempted_at > :now;

-- The machine slept or came to another network: what waits by our own delay need not any more.
-- name: shorten_delays
UPDATE delivery INDEXED BY delivery_retry SET next_attempt_at = :now
WHERE state = 'pending' AND attempts > 0 AND next_attempt_at > :now
  AND next_attempt_at - attempted_at <= :longest;

-- The clock was set: what durations are measured from is set with it. The index is named, so that
-- a backlog alone is read.
-- name: shift_deliveries
UPDATE delivery INDEXED BY delivery_by_state SET accepted_at = accepted_at + :step,
    first_attempt_at = first_attempt_at + :step, attempted_at = attempted_at + :step,
    next_attempt_at = next_attempt_at + :step, refused_at = refused_at + :step
WHERE state = 'pending';

-- The same for the time from which an edit counts as late.
-- name: shift_turns
UPDATE turn SET answered_at = answered_at + :step WHERE answered_at >= :since;

-- ---- What became of a delivery ------------------------------------------------------------

-- An attempt after which the receiver has it, also where a later revision superseded it meanwhile.
-- name: record_delivered
UPDATE delivery SET attempts = :attempts, first_attempt_at = :first_attempt_at,
    attempted_at = :now, refusals = :refusals, refused_at = :refused_at, evidence = :evidence,
    reported_at = :reported_at, reported_attempt = :reported_attempt,
    state = CASE WHEN sha256 IS NULL THEN 'failed' ELSE 'delivered' END, settled_at = :settled_at
WHERE id = :delivery;

-- An attempt that is followed by another one, unless it was superseded meanwhile.
-- name: record_retry
UPDATE delivery SET attempts = :attempts, first_attempt_at = :first_attempt_at,
    attempted_at = :now, refusals = :refusals, refused_at = :refused_at, evidence = :evidence,
    reported_at = :reported_at, reported_attempt = :reported_attempt,
    next_attempt_at = :next_attempt_at
WHERE id = :delivery RETURNING state;

-- An attempt after which it is given up, unless it was superseded meanwhile.
-- name: record_dead
UPDATE delivery SET attempts = :attempts, first_attempt_at = :first_attempt_at,
    attempted_at = :now, refusals = :refusals, refused_at = :refused_at, evidence = :evidence,
    reported_at = :reported_at, reported_attempt = :reported_attempt,
    reason = CASE WHEN state = 'pending' THEN :cause ELSE reason END,
    settled_at = CASE WHEN state = 'pending' THEN :now ELSE settled_at END,
    state = CASE WHEN state = 'pending' THEN 'dead' ELSE state END
WHERE id = :delivery RETURNING state;

-- Keeps what the receiver said when it refused it.
-- name: record_said
UPDATE delivery SET said = :said WHERE id = :delivery AND said IS NOT :said;

-- An attempt that was reported after the first few takes the place of those before it: what an
-- outage leaves does not grow. Whoever counts attempts has had five minutes to see the older ones.
-- name: purge_attempt_events
DELETE FROM event WHERE turn = :turn AND at < :now - 300000
  AND id <= (SELECT printed FROM service)
  AND name = 'delivery.attempted' AND json_extract(fields, '$.webhook_id') = :webhook_id
  AND json_extract(fields, '$.attempt') > :kept;

-- Keeps since when and why the receiver is left alone; none where it is not.
-- name: set_paused
UPDATE service SET paused_at = :at, paused_for = :why;

-- What a replay sends again: the newest revision of each turn that was not superseded.
-- name: replayable
SELECT d.id, d.turn, d.revision, d.webhook_id, d.bytes, d.sha256,
       t.turn_id, t.backend, t.persona, t.submitted_turn_id, t.user_id
FROM delivery d JOIN turn t ON t.id = d.turn
WHERE d.state IN ('delivered', 'failed', 'dead')
  AND d.id = (SELECT max(x.id) FROM delivery x WHERE x.turn = d.turn AND x.state <> 'superseded')
  AND (:turn IS NULL OR d.turn = :turn)
  AND (:dead = 0 OR d.state = 'dead')
  AND max(d.accepted_at, coalesce(d.settled_at, d.accepted_at)) >= :since
ORDER BY d.id;

-- Makes a delivery pending again, as if it had never been tried, where its body is still there.
-- name: replay
UPDATE delivery SET state = 'pending', reason = CASE WHEN sha256 IS NULL THEN reason END,
    attempts = 0, first_attempt_at = NULL, next_attempt_at = :now, refusals = 0,
    refused_at = NULL, evidence = 0, reported_at = NULL, reported_attempt = 0, settled_at = NULL
WHERE id = :delivery AND EXISTS (SELECT 1 FROM body WHERE delivery = :delivery);

-- ---- Events -------------------------------------------------------------------------------

-- Writes an event of a turn, or of the service where it names none.
-- name: add_event
INSERT INTO event (at, name, turn, fields) VALUES (:now, :name, :turn, :fields);

-- The events after one, in the order in which they were written.
-- name: events
SELECT id, at, name, fields FROM event WHERE id > :after ORDER BY id LIMIT :limit;

-- All events of a turn.
-- name: events_of_turn
SELECT id, at, name, fields FROM event WHERE turn = :turn ORDER BY id;

-- The id that was given last, also where that event was pruned since.
-- name: last_event_id
SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'event'), 0);

-- The events after one, each with its turn's row.
-- name: event_rows
SELECT id, at, name, turn, fields FROM event WHERE id > :after ORDER BY id LIMIT :limit;

-- The first event that was written after another.
-- name: next_event
SELECT id, at FROM event WHERE id > :after ORDER BY id LIMIT 1;

-- How much is undelivered, and of which event that is the consequence.
-- name: pending_as_of
SELECT (SELECT count(*) FROM delivery WHERE state = 'pending') AS pending,
       (SELECT coalesce(max(id), 0) FROM event) AS event;

-- How long it took from a file's completion to the acknowledgement that an event records; none
-- after a replay.
-- name: end_to_end_ms
SELECT json_extract(d.fields, '$.since_accepted_ms') + json_extract(a.fields, '$.settle_ms')
FROM event d
JOIN event a ON a.turn = d.turn AND a.name IN ('turn.accepted', 'turn.revised')
    AND json_extract(a.fields, '$.webhook_id') = json_extract(d.fields, '$.webhook_id')
WHERE d.id = :event AND NOT EXISTS (
    SELECT 1 FROM event r WHERE r.turn = d.turn AND r.name = 'delivery.replayed' AND r.id < d.id
      AND json_extract(r.fields, '$.webhook_id') = json_extract(d.fields, '$.webhook_id'));

-- Keeps up to which event the lines are out.
-- name: set_printed
UPDATE service SET printed = :printed;

-- ---- What commands and metrics read -------------------------------------------------------

-- The one row of the service.
-- name: service
SELECT * FROM service;

-- Keeps what a scan found, for commands; writes nothing where nothing changed.
-- name: set_roots
UPDATE service SET roots = :roots WHERE roots <> :roots;

-- Whether anything is undelivered.
-- name: has_undelivered
SELECT EXISTS (SELECT 1 FROM delivery WHERE state IN ('pending', 'dead'));

-- How many deliveries are in each state.
-- name: counts
SELECT state, count(*) AS n FROM delivery GROUP BY state;

-- How many were given up since a time.
-- name: dead_since
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

-- Deliveries with their turns and what was last answered, the newest first.
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

-- How many of them there are without a limit.
-- name: count_deliveries
SELECT count(*) FROM delivery
WHERE accepted_at >= :since AND (:state IS NULL OR state = :state);

-- The deliveries of a turn.
-- name: deliveries_of_turn
SELECT id, revision, state, reason, bytes, sha256, webhook_id, attempts,
       accepted_at, next_attempt_at, settled_at, said
FROM delivery WHERE turn = :turn ORDER BY id;

-- What the receiver said of those that were given up, by their ids.
-- name: said_of_dead
SELECT webhook_id, said FROM delivery WHERE state = 'dead' AND said IS NOT NULL;

-- The turns of an id, their own or that under which they were submitted.
-- name: turns_named
SELECT * FROM turn WHERE turn_id = :id
UNION SELECT * FROM turn WHERE submitted_turn_id = :id;

-- Ids that begin so, each with its turn.
-- name: ids_beginning
SELECT turn_id AS id, id AS turn FROM turn WHERE turn_id >= :first AND turn_id < :end
UNION SELECT submitted_turn_id, id FROM turn
WHERE submitted_turn_id >= :first AND submitted_turn_id < :end
ORDER BY 1 LIMIT :limit;

-- The greatest id of a turn.
-- name: last_turn
SELECT coalesce(max(id), 0) FROM turn;

-- Events after one id, up to another, that were recorded within a time. Bounded by ids and not by a
-- number of rows: what is outside of the time must not make one statement read all that is kept.
-- name: event_page
SELECT id, at, name, fields FROM event
WHERE id > :after AND id <= :up_to AND at >= :since AND at < :until ORDER BY id;

-- All that is known of turns and of each of their deliveries: the turns after one id, up to another,
-- that were met, and the deliveries that were accepted, within a time.
-- name: turn_page
SELECT t.turn_id, t.submitted_turn_id, t.backend, t.persona, substr(t.user_id, 1, 8) AS user,
       d.revision, d.state, d.reason, d.bytes, d.sha256, d.webhook_id,
       t.seen_at AS first_seen_at, d.accepted_at, d.first_attempt_at, d.settled_at,
       CASE WHEN d.state = 'pending' THEN d.next_attempt_at END AS next_attempt_at,
       d.body_purged_at, t.gone_at, d.attempts,
       json_extract(l.fields, '$.status') AS last_status,
       json_extract(l.fields, '$.error') AS last_error,
       json_extract(l.fields, '$.detail') AS last_detail,
       (SELECT count(*) FROM event r WHERE r.turn = t.id AND r.name = 'delivery.replayed'
            AND json_extract(r.fields, '$.webhook_id') = d.webhook_id) AS replays,
       json_extract(a.fields, '$.agent_ms') AS agent_ms,
       json_extract(a.fields, '$.settle_ms') AS settle_ms
FROM turn t LEFT JOIN delivery d ON d.turn = t.id
LEFT JOIN event l ON l.id = (
    SELECT max(e.id) FROM event e WHERE e.turn = t.id AND e.name = 'delivery.attempted'
      AND json_extract(e.fields, '$.webhook_id') = d.webhook_id)
LEFT JOIN event a ON a.id = (
    SELECT min(e.id) FROM event e
    WHERE e.turn = t.id AND e.name IN ('turn.accepted', 'turn.revised', 'turn.failed')
      AND json_extract(e.fields, '$.webhook_id') = d.webhook_id)
WHERE t.id > :after AND t.id <= :up_to
  AND coalesce(d.accepted_at, t.seen_at) >= :since AND coalesce(d.accepted_at, t.seen_at) < :until
ORDER BY t.id, d.id;

-- How many are undelivered, and when the oldest of them was accepted.
-- name: backlog
SELECT count(*) AS pending, min(accepted_at) AS oldest_at FROM delivery WHERE state = 'pending';

-- Turns whose token was found since a time and of which no file came yet, the newest first.
-- name: asked
SELECT turn_id, backend, persona, substr(user_id, 1, 8) AS user, seen_at FROM turn
WHERE (gone_at IS NOT NULL OR fingerprint IS NULL) AND coalesce(gone_at, seen_at) >= :since
  AND user_id IS NOT NULL AND seen_content_key IS NULL AND gone_at IS NULL
ORDER BY coalesce(gone_at, seen_at) DESC LIMIT :limit;

-- What is undelivered, in the order in which it was accepted.
-- name: undelivered
SELECT t.turn_id, t.backend, t.persona, substr(t.user_id, 1, 8) AS user,
       d.revision, d.attempts, d.accepted_at, d.next_attempt_at
FROM delivery d JOIN turn t ON t.id = d.turn
WHERE d.id IN (
    SELECT id FROM delivery WHERE state = 'pending' AND settled_at IS NULL ORDER BY id LIMIT :limit)
ORDER BY d.id;

-- What was accepted last and is settled, the newest first, with the times that it took. The index is
-- named: the planner would sort all that is kept.
-- name: settled
SELECT t.turn_id, t.backend, t.persona, substr(t.user_id, 1, 8) AS user,
       d.revision, d.state, d.attempts, d.bytes, d.accepted_at, d.settled_at,
       json_extract(a.fields, '$.agent_ms') AS agent_ms,
       json_extract(a.fields, '$.settle_ms') AS settle_ms
FROM delivery d INDEXED BY delivery_by_age JOIN turn t ON t.id = d.turn
LEFT JOIN event a ON a.id = (
    SELECT min(e.id) FROM event e
    WHERE e.turn = t.id AND e.name IN ('turn.accepted', 'turn.revised', 'turn.failed')
      AND json_extract(e.fields, '$.webhook_id') = d.webhook_id)
WHERE d.state IN ('delivered', 'failed', 'dead')
ORDER BY d.accepted_at DESC, d.id DESC LIMIT :limit;

-- ---- Erasing ------------------------------------------------------------------------------

-- The ids of users that begin so.
-- name: users_beginning
SELECT DISTINCT user_id FROM turn
WHERE substr(user_id, 1, length(:prefix)) = :prefix ORDER BY 1 LIMIT :limit;

-- The turns of a user.
-- name: turns_of_user
SELECT id FROM turn WHERE user_id = :user ORDER BY id;

-- What there is to know of a turn before it is erased; none where it was.
-- name: erasable
SELECT t.id, t.turn_id, t.backend, t.persona,
       (SELECT count(*) FROM delivery d
        WHERE d.turn = t.id AND d.state IN ('pending', 'dead')) AS undelivered,
       t.seen_content_key IS NULL AND t.gone_at IS NULL AS is_awaited,
       t.fingerprint IS NOT NULL AND t.gone_at IS NULL AS has_file,
       (SELECT coalesce(sum(length(b.bytes)), 0) FROM delivery d JOIN body b ON b.delivery = d.id
        WHERE d.turn = t.id) AS size
FROM turn t WHERE t.id = :turn AND t.erased_at IS NULL;

-- Erases the deliveries of a turn, and their bodies.
-- name: erase_deliveries
DELETE FROM delivery WHERE turn = :turn;

-- Erases the events of a turn.
-- name: erase_events
DELETE FROM event WHERE turn = :turn;

-- Erases what a turn's row has of a person or of a content. What its file looks like stays, so that
-- it is known where it is still there.
-- name: erase_turn
UPDATE turn SET submitted_turn_id = NULL, user_id = NULL, answered_at = NULL,
    seen_content_key = NULL, sent_content_key = NULL, erased_at = :now
WHERE id = :turn;

-- ---- Pruning ------------------------------------------------------------------------------

-- Deliveries that ended before a time and still have a body. A superseded body is never sent
-- again, also not by a replay.
-- name: expired_bodies
SELECT d.id, coalesce(length(b.bytes), 0) AS bytes
FROM delivery d INDEXED BY delivery_finished LEFT JOIN body b ON b.delivery = d.id
WHERE d.state IN ('delivered', 'failed', 'superseded') AND d.body_purged_at IS NULL
  AND d.settled_at < :before
ORDER BY d.settled_at LIMIT :limit;

-- Keeps that the bodies of these deliveries are gone.
-- name: mark_bodies_purged
UPDATE delivery SET body_purged_at = :now WHERE id IN (SELECT value FROM json_each(:deliveries));

-- Drops the bodies of these deliveries.
-- name: delete_bodies
DELETE FROM body WHERE delivery IN (SELECT value FROM json_each(:deliveries));

-- Drops turns whose file is gone, or never came, the oldest first; whatever else touched a turn left
-- an event.
-- name: purge_turns
DELETE FROM turn WHERE id IN (
    SELECT t.id FROM turn t
    WHERE (t.gone_at IS NOT NULL OR t.fingerprint IS NULL)
      AND coalesce(t.gone_at, t.seen_at) < :before
      AND (t.gone_at IS NOT NULL OR t.seen_at < :awaited_before)
      AND NOT EXISTS (
        SELECT 1 FROM delivery d WHERE d.turn = t.id AND d.state IN ('pending', 'dead'))
      AND NOT EXISTS (
        SELECT 1 FROM event e WHERE e.turn = t.id
          AND (e.at >= :before OR e.id > (SELECT printed FROM service)))
    ORDER BY coalesce(t.gone_at, t.seen_at) LIMIT :limit);

-- Drops events of the service that are old and were printed.
-- name: purge_events
DELETE FROM event WHERE id IN (
    SELECT id FROM event
    WHERE turn IS NULL AND at < :before AND id <= (SELECT printed FROM service)
    LIMIT :limit);
