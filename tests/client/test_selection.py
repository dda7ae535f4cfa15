"""Which store a name opens."""

from __future__ import annotations

from pathlib import Path

import pytest

from paliadin_client import ConfigError
from paliadin_client.store.memory import MemoryStore
from paliadin_client.store.selection import open_store, store_from
from paliadin_client.store.sqlite import SqliteStore


def test_none_is_memory() -> None:
    """Where no store is named, this process remembers by itself."""
    assert type(open_store(None)) is MemoryStore


@pytest.mark.parametrize("name", ["inbox.sqlite3", "a folder/host=x", "ü:1", "postgresql"])
def test_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Any path is a SQLite database: as text and as a path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    for each in (name, Path(name), str(tmp_path / name)):
        assert isinstance(open_store(each), SqliteStore)
    assert (tmp_path / name).is_file()


@pytest.mark.parametrize(
    "name",
    [
        "postgresql+asyncpg://anna:marker@db.example.org/paliad",
        "POSTGRESQL:/anna:marker@db.example.org/paliad",
        "mysql://anna:marker@db.example.org/paliad",
        "sqlite:///inbox.sqlite3?marker",
        " postgresql://anna:marker@db.example.org/paliad",
        "'postgresql://anna:marker@db.example.org/paliad'",
        "postgresql:anna:marker@db.example.org",
        "anna:mar/ker-marker@db.example.org:5432/paliad",
        "host=db.example.org password=marker",
        "'host=db.example.org password=marker'",
        "sslmode=require dbname = paliad password='marker'",
    ],
)
def test_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What was meant for a database never becomes a file's name, and is not shown."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="neither a path nor a URL") as caught:
        open_store(name)
    assert "marker" not in repr(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({}, None),
        ({"PALIADIN_STORE": " "}, None),
        ({"PALIADIN_STORE": " inbox.sqlite3\n"}, "inbox.sqlite3"),
    ],
)
def test_environment(environ: dict[str, str], name: str | None) -> None:
    """Blanks around it are none of it, and an empty one is none."""
    assert store_from(environ) == name
