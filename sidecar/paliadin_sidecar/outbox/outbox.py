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
    record_hint = acceptance.record_hint
    accept = acceptance.accept
    mark_gone = acceptance.mark_gone
    mark_vanished = acceptance.mark_vanished
    record_turn_event = acceptance.record_turn_event
    is_known_root = acceptance.is_known_root
    register_root = acceptance.register_root
    present_files = acceptance.present_files

    # queue
    fetch_due = queue.fetch_due
    retry_after_s = queue.retry_after_s
    newest_delivery = queue.newest_delivery

    # transitions
    record_delivered = transitions.record_delivered
    record_retry = transitions.record_retry
    record_dead = transitions.record_dead
    pause = transitions.pause
    resume = transitions.resume
    replay = transitions.replay

    # event_rows
    record_service_event = event_rows.record_service_event
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
    prune = maintenance.prune
