from __future__ import annotations

from support.outbox_box import NOW, answer

from paliadin_sidecar.outbox.records import Delivery


def test_no_answer_in_a_repr() -> None:
    """Neither an arrival nor a delivery shows what it holds."""
    arrival = answer("geheim")
    due = Delivery(id=1, turn=1, webhook_id="id", body=b"geheim", accepted_at=NOW)
    assert "geheim" not in repr(arrival) + repr(due)
