"""What Prometheus's own tool says to the alert rules and to a scrape: `make check-host`."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import urllib.request
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from support.operate import block
from support.packages import apt_fetch
from support.receiver import Receiver
from support.sidecar import Sidecar

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.host,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for packages"),
]

UP, ROOT = 'up{job="paliadin-sidecar"}', 'paliadin_sidecar_root_armed{path="/tmp/paliadin"}'
DEAD = 'paliadin_sidecar_deliveries_total{outcome="dead"}'
#: Each alert, its labels, and what it is about: samples a minute apart, or that there are none.
WRONG = [
    ("PaliadinSidecarDown", {"job": "paliadin-sidecar"}, {UP: "0x30"}),
    ("PaliadinSidecarDown", {"job": "paliadin-sidecar"}, {UP: "_x30"}),
    ("PaliadinBacklog", {}, {"paliadin_sidecar_backlog_age_seconds": "0+60x30"}),
    ("PaliadinBacklog", {}, {"paliadin_sidecar_receiver_paused": "1x30"}),
    ("PaliadinTurnsDead", {}, {DEAD: "1x10 2x20"}),
    ("PaliadinRootNotWatched", {"path": "/tmp/paliadin"}, {ROOT: "0x30"}),
    ("PaliadinDiskNearlyFull", {}, {"paliadin_sidecar_state_free_bytes": "100000000x30"}),
]
#: A host on which all is well.
WELL = {
    UP: "1x30",
    "paliadin_sidecar_backlog_age_seconds": "0 30 0x28",
    "paliadin_sidecar_receiver_paused": "0x30",
    DEAD: "1x30",
    ROOT: "1x30",
    "paliadin_sidecar_state_free_bytes": "10000000000x30",
}


@pytest.fixture(scope="module")
def promtool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prometheus")
    apt_fetch("prometheus", folder)
    return folder / "usr/bin/promtool"


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yml"
    path.write_text(block("alerts"))
    return path


def run(promtool: Path, *args: object, text: str = "") -> str:
    done = subprocess.run(
        [promtool, *map(str, args)], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_it_takes_the_rules(promtool: Path, rules: Path) -> None:
    """All five."""
    assert "5 rules found" in run(promtool, "check", "rules", rules)


@pytest.mark.parametrize(("name", "labels", "seen"), [*WRONG, (None, {}, {})])
def test_each_fires_for_what_it_tells_of_and_for_nothing_else(
    promtool: Path, rules: Path, name: str | None, labels: dict[str, str], seen: dict[str, str]
) -> None:
    """One thing wrong makes one alert, and a good host none."""
    expected = []
    for other, summary in re.findall(r"alert: (\w+)\n(?:.*\n)+?.*summary: (.*)", block("alerts")):
        said = {"summary": summary.replace("{{ $labels.path }}", "/tmp/paliadin")}
        fires = [{"exp_labels": labels, "exp_annotations": said}] if other == name else []
        expected.append({"eval_time": "20m", "alertname": other, "exp_alerts": fires})
    assert len(expected) == 5
    series = [{"series": one, "values": values} for one, values in (WELL | seen).items()]
    test = {"interval": "1m", "input_series": series, "alert_rule_test": expected}
    path = rules.with_name("test.yml")  # JSON is YAML
    path.write_text(json.dumps({"rule_files": [rules.name], "tests": [test]}))
    run(promtool, "test", "rules", path)


def test_the_names_are_as_prometheus_wants_them(promtool: Path, tmp_path: Path) -> None:
    """Its linter has nothing to say to a real scrape."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with Receiver() as receiver:
        host = Sidecar(tmp_path, receiver.url, PALIADIN_METRICS=address)
        host.make_roots()
        try:
            host.start()
            host.answer("t1")
            host.wait_event("delivery.delivered", turn_id="t1")
            with urllib.request.urlopen(f"http://{address}/metrics") as response:
                scraped = response.read().decode()
        finally:
            host.close()
    assert "paliadin_sidecar_end_to_end_seconds_bucket" in scraped
    assert run(promtool, "check", "metrics", text=scraped) == ""
