"""The outbox: what was accepted, until it is acknowledged.

This is the list of all that can be done with it. Each method is a function in the module of its
job, which takes the database first; nothing else is kept in memory.
"""

from __future__ import annotations

from paliadin_sidecar.outbox import acceptance, event_rows, maintenance, queries, queue, transitions
from paliadin_sidecar.outbox.database import Database

__all__ = ["Outbox"]


class Outbox(Database):
    """The database, and one named method for each transition and each query.

    A method that writes is called within `transaction`, which makes it durable.
    """

    # acceptance
    hint = acceptance.hint
    accept = acceptance.accept
    gone = acceptance.gone
    vanished = acceptance.vanished
    note = acceptance.note
    is_met = acceptance.is_met
    meet = acceptance.meet
    lying = acceptance.lying

    # queue
    due = queue.due
    asked_to_rest_s = queue.asked_to_rest_s

    # transitions
    attempted = transitions.attempted
    delivered = transitions.delivered
    retry = transitions.retry
    bury = transitions.bury
    pause = transitions.pause
    resume = transitions.resume
    replay = transitions.replay

    # event_rows
    happened = event_rows.happened
    events = event_rows.events
    newest_event = event_rows.newest_event
    end_to_end_s = event_rows.end_to_end_s
    printed = event_rows.printed
    set_printed = event_rows.set_printed

    # queries
    set_roots = queries.set_roots
    service = queries.service
    counts = queries.counts
    oldest_pending_s = queries.oldest_pending_s
    dead_since = queries.dead_since
    failing = queries.failing
    deliveries = queries.deliveries
    count_deliveries = queries.count_deliveries
    find_ids = queries.find_ids
    timelines = queries.timelines

    # maintenance
    tidy = maintenance.tidy
