"""A state directory whose disk answers with errors alone: it died, or its mount is gone."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from chaos.lossy import LossyDisk
from support.receiver import Receiver, Reply
from support.sidecar import Sidecar

from paliadin_sidecar.errors import StateDirBlocked
from paliadin_sidecar.host import state_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_a_lock_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an error of the disk with a sentence, and no defect of the program."""

    def fails(*_: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", fails)
    with pytest.raises(StateDirBlocked, match="cannot be read"), state_directory.lock(tmp_path):
        pass


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LossyDisk]:
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("needs root and /dev/fuse, to mount")
    with LossyDisk(tmp_path / "disk") as disk:
        yield disk


def test_a_disk_that_died(tmp_path: Path, disk: LossyDisk) -> None:
    """The daemon ends and each command says why, and none says to move the outbox aside."""
    with Receiver(lambda _: Reply()) as receiver:
        host = Sidecar(tmp_path, receiver.url, PALIADIN_STATE_DIR=str(disk.path / "state"))
        host.make_roots()
        try:
            host.start()
            disk.die()
            host.answer("a")
            assert host.wait() == 1
            assert b"its disk fails" in host.output
            host.start(wait=False)
            assert host.wait() == 1
        finally:
            host.close()
    for command in ("status", "turns", "export", "check"):
        done = host.typed(command)
        assert done.returncode == 1
        assert "its disk fails" in done.stdout + done.stderr
        assert "aside and begin" not in done.stdout + done.stderr
    assert "cannot be read (Transport endpoint is not connected)" in done.stdout.splitlines()[0]
    assert b"service.crashed" not in host.output
    assert b"aside" not in host.output.replace(b"move nothing aside", b"")
