"""The table of events holds what is recorded, and nothing else."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from support.outbox_box import KEY, NOW, ROOT, USER, Box, answer, failure, key

import paliadin_sidecar
from paliadin_sidecar.audit.catalogue import EVENTS, FIELDS, level_of
from paliadin_sidecar.intake.events import Flooded, Stalled, record_events
from paliadin_sidecar.outbox import acceptance, erasure, event_rows, transitions
from paliadin_sidecar.outbox.records import RootState
from paliadin_sidecar.settings import RootSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = [
    path
    for path in Path(paliadin_sidecar.__file__).parent.rglob("*.py")
    if path.name != "catalogue.py"
]
#: An event's name in the code. The names of files are not meant.
NAME = re.compile(
    r"(turn|delivery|receiver|root|watch|service|outbox|metrics)\.(?!db\Z|sql\Z)[a-z_]+"
)
ROOT_EVENTS = {f"root.{state}" for state in (*get_args(RootState), "replaced")}


def test_each_event_in_the_code_is_in_the_table() -> None:
    """And each of the table is recorded somewhere; those of a root by the state's name."""
    literals = {
        node.value
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert {one for one in literals if NAME.fullmatch(one)} | ROOT_EVENTS == EVENTS.keys()


def test_each_field_that_is_recorded_is_in_the_table(tmp_path: Path) -> None:
    """And each of the table is recorded, of an event that has it."""
    found: dict[str, set[str]] = dict(_plain_calls())
    for name, fields in _recorded(tmp_path):
        found.setdefault(name, set()).update(fields)
    of_roots = found.pop("root.")
    found |= dict.fromkeys(ROOT_EVENTS, of_roots)
    # One that is well has no reason.
    table = {name: set(kind.fields) for name, kind in EVENTS.items()}
    for name in ("root.armed", "root.replaced"):
        table[name] |= {"why"}
    assert found == table


def _plain_calls() -> Iterator[tuple[str, set[str]]]:
    # Where a call names the event and all of its fields, the code says which there are.
    for path in SOURCES:
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            variables = {
                node.targets[0].id: node.value
                for node in ast.walk(function)
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            }
            for node in ast.walk(function):
                if (found := _plain_call(node, variables)) is not None:
                    yield found


def _plain_call(node: ast.AST, variables: dict[str, ast.expr]) -> tuple[str, set[str]] | None:
    match node:
        case ast.Call(
            func=ast.Attribute(attr="record" | "print_unrecorded" | "line"),
            args=[
                ast.Constant(value=str(name)) | ast.JoinedStr(values=[ast.Constant(str(name)), _]),
                *dictionaries,
            ],
            keywords=keywords,
        ):
            named = {keyword.arg for keyword in keywords if keyword.arg is not None}
            dictionaries += [keyword.value for keyword in keywords if keyword.arg is None]
            values = [
                variables[one.id] if isinstance(one, ast.Name) else one for one in dictionaries
            ]
            return name, named.union(*map(_keys, values))
    return None


def _keys(node: ast.expr) -> set[str]:
    if isinstance(node, ast.Attribute) and node.attr == "about":
        return {*RootSpec("", "", Path()).about}
    return {
        key.value
        for one in ast.walk(node)
        if isinstance(one, ast.Dict)
        for key in one.keys
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    }


def _recorded(tmp_path: Path) -> Iterator[tuple[str, set[str]]]:
    # What intake and delivery have recorded, in an outbox in which all of it happens.
    box = Box(tmp_path / "outbox.db", create=True)
    with box.outbox:
        box.now = NOW - 60
        box(acceptance.record_hint, KEY, "submitted", USER)
        box.now = NOW
        box(acceptance.accept, answer("one"))
        box(acceptance.accept, answer("two"))  # before the first was sent
        box.retry(box.due()[0], status=400, refused=True)
        box.retry(box.due()[0], status=None, error="tls", detail="expired", reported=False)
        box.retry(box.due()[0], status=None, error="tls", detail="expired")
        box.give_up(box.due()[0], "refused")
        box(transitions.replay, turn_id="t")
        box.deliver()
        box(acceptance.accept, answer("", has_text=False))
        failed = key("f")
        box(acceptance.record_hint, failed, "submitted-f", USER)
        box.now += 60
        box(acceptance.accept, failure("empty", failed, at=box.now - 1))
        box(acceptance.accept, failure("untrusted", failed, why="two names", at=box.now - 1))
        for gone in ("v", "w"):
            box(acceptance.record_hint, key(gone), f"submitted-{gone}", USER)
        box(acceptance.mark_vanished, key("v"))
        box(acceptance.accept, answer("", key("w"), has_text=False))
        box(acceptance.record_hint, key("s"), "submitted-s", USER)
        box(record_events, [Stalled(key("s"), "unreadable", "EIO")])
        box(acceptance.record_hint, key("h"), "submitted-h", USER)
        box(acceptance.register_root, ROOT, [answer("old", key("h"))])
        box(transitions.pause, "connect")
        box(transitions.resume, 1.0)
        spec = RootSpec(ROOT["backend"], ROOT["persona"], Path(ROOT["path"]))
        box(record_events, [Flooded(spec, {"empty": 2}, 1, 3)])
        box(acceptance.accept, answer("mine", key("e")))
        before = box(event_rows.events, 0)
        (turn,) = box(erasure.turns_named, "e")
        box(erasure.erase, turn.id, "root", undelivered=True)
        for event in (*before, *box(event_rows.events, before[-1].id)):
            yield event.name, set(event.fields)


def test_levels() -> None:
    """An event that is not known is information."""
    assert level_of("delivery.dead") == "error"
    assert level_of("turn.accepted") == level_of("of.tomorrow") == "info"


def test_fields() -> None:
    """Each is there once."""
    assert len(FIELDS) == len(set(FIELDS))
