"""What is measured: who pushes files from a directory to an address, and how each is started."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from bench import before

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    _Command = tuple[list[str], dict[str, str]]


_HERE = Path(__file__).parent
_BUILT = _HERE.parent / "built"
_BIN = Path(sys.executable).parent
FLOOR, SHIPPED = "floor (C, inotify, no durability)", "paliadin-sidecar, as shipped"
INOTIFY, INOTIFY_NO_COMMITS = "… with inotify", "… with inotify, commits off"
BEFORE = f"before ({before.COMMIT})"
NODE, WATCHDOG = "Node fs.watch + fetch", "watchdog + requests"


@dataclass(frozen=True)
class Candidate:
    """One way to do the job.

    Attributes:
        name: as the tables say it.
        command: its command line and what its environment says more, for a root, a port and a
            directory of its own.
        needs: programs and modules; one that is missing is reported.
        kind: `floor`, `least` (that Python can do), `ours`, `before`, or `other`.
        burst: how many files at once it is given, at most: one that starts a process for each
            file would take minutes, or fill the memory.
    """

    name: str
    command: Callable[[Path, int, Path], _Command]
    needs: tuple[str, ...] = ()
    kind: str = "other"
    burst: int = 10_000

    @property
    def is_service(self) -> bool:
        """Whether a service manager is notified."""
        return self.kind in {"ours", "before"}

    @property
    def missing(self) -> list[str]:
        """What it needs and is not here."""
        return [need for need in self.needs if not _is_here(need)]


def _is_here(need: str) -> bool:
    if need == before.NAME:
        return before.PROGRAM.exists()
    return bool(shutil.which(need)) or _has_module(need) or (_BUILT / need).exists()


def _has_module(name: str) -> bool:
    return name.isidentifier() and find_spec(name) is not None


def before_of(name: str) -> str:
    """The candidate of before that this one is compared with."""
    return f"{BEFORE}, as shipped" if name == SHIPPED else name.replace("…", BEFORE, 1)


def _service(*argv: str, **more: str) -> Callable[[Path, int, Path], _Command]:
    def command(root: Path, port: int, own: Path) -> _Command:
        return list(argv), {
            "PALIADIN_STATE_DIR": str(own / "state"),
            "PALIADIN_WATCH": f"aichat/paliadin={root}",
            "PALIADIN_CALLBACK_URL": f"http://127.0.0.1:{port}/",
            # A million delivered turns beside 100,000 answers take more than the default.
            "PALIADIN_MAX_OUTBOX": str(8 << 30),
            "PALIADIN_CALLBACK_SECRET": "whsec_" + base64.b64encode(os.urandom(32)).decode(),
            **more,
        }

    return command


def _services() -> Iterator[Candidate]:
    # Ours and that of before, each with either engine, commits on and off.
    programs = {
        "ours": ([str(_BIN / "paliadin-sidecar")], [sys.executable, str(_HERE / "ours.py")]),
        "before": ([str(before.PROGRAM)], [str(before.PYTHON), str(before.VARIANTS)]),
    }
    for kind, (program, variants) in programs.items():
        for name, argv, more in (
            (SHIPPED, [*program, "run"], {}),
            (INOTIFY, [*program, "run"], {"PALIADIN_EVENTS": "inotify"}),
            ("… commits off", [*variants, "no-commits"], {}),
            (INOTIFY_NO_COMMITS, [*variants, "no-commits"], {"PALIADIN_EVENTS": "inotify"}),
        ):
            needs = () if kind == "ours" else (before.NAME,)
            engine = ("asyncinotify",) if more and kind == "ours" else ()
            title = name if kind == "ours" else before_of(name)
            yield Candidate(title, _service(*argv, **more), (*needs, *engine), kind)


def _least(*more: str) -> Callable[[Path, int, Path], _Command]:
    def command(root: Path, port: int, own: Path) -> _Command:
        return [sys.executable, str(_HERE / "least.py"), str(root), str(port), str(own), *more], {}

    return command


def _plain(*argv: str) -> Callable[[Path, int, Path], _Command]:
    def command(root: Path, port: int, _: Path) -> _Command:
        return [argv[0], *argv[1:2], str(root), str(port), *argv[2:]], {}

    return command


def _floor(root: Path, port: int, _: Path) -> _Command:
    return [str(_BUILT / "floor"), str(root), str(port)], {}


def _incron(root: Path, port: int, own: Path) -> _Command:
    (tables := own / "tables").mkdir()
    (own / "spool").mkdir()
    post = f"curl -s -o /dev/null --data-binary @$@/$# http://127.0.0.1:{port}/"
    (tables / "bench").write_text(f"{root} IN_CLOSE_WRITE,IN_MOVED_TO {post}\n", encoding="utf-8")
    (own / "incron.conf").write_text(
        f"system_table_dir = {tables}\nuser_table_dir = {own}/spool\nlockfile_dir = {own}\n",
        encoding="utf-8",
    )
    return ["incrond", "-n", "-f", str(own / "incron.conf")], {}


def _syslog_ng(root: Path, port: int, own: Path) -> _Command:
    version = subprocess.run(["syslog-ng", "-V"], capture_output=True, text=True, check=True)
    numbers = version.stdout.partition("(")[2].partition(")")[0]  # "syslog-ng 3 (3.38.1)"
    major_minor = ".".join(numbers.split(".")[:2])
    (own / "syslog-ng.conf").write_text(
        f"""@version: {major_minor}
source files {{
    wildcard-file(base-dir("{root}") filename-pattern("*.txt") monitor-method("inotify")
        max-files(20000) log-iw-size(2000000) flags(no-parse));
}};
destination post {{
    http(url("http://127.0.0.1:{port}/") method("POST") body("${{MESSAGE}}"));
}};
log {{ source(files); destination(post); }};
""",
        encoding="utf-8",
    )
    files = [f"--{name}={own}/{name}" for name in ("persist-file", "pidfile", "control")]
    return ["syslog-ng", "-F", "-f", str(own / "syslog-ng.conf"), *files], {}


CANDIDATES: tuple[Candidate, ...] = (
    Candidate(FLOOR, _floor, ("floor",), "floor"),
    *_services(),
    Candidate("the least in Python", _least(), ("asyncinotify", "aiohttp"), "least"),
    Candidate(
        "the least in Python, commits off",
        _least("no-commits"),
        ("asyncinotify", "aiohttp"),
        "least",
    ),
    *(
        Candidate(
            f"polling, {ms} ms", _plain(sys.executable, str(_HERE / "poll.py"), f"{ms / 1000}")
        )
        for ms in (100, 1000)
    ),
    Candidate(
        "inotifywait + curl",
        _plain("bash", str(_HERE / "inotifywait_curl.sh")),
        ("bash", "inotifywait", "curl"),
        burst=2000,
    ),
    Candidate(
        "fswatch + curl",
        _plain("bash", str(_HERE / "fswatch_curl.sh")),
        ("bash", "fswatch", "curl"),
        burst=1000,
    ),
    Candidate("incron + curl", _incron, ("incrond", "curl"), burst=1000),
    Candidate(
        WATCHDOG,
        _plain(sys.executable, str(_HERE / "watchdog_requests.py")),
        ("watchdog", "requests"),
    ),
    Candidate(NODE, _plain("node", str(_HERE / "fs_watch.mjs")), ("node",)),
    Candidate(
        "Node chokidar + fetch",
        _plain("node", str(_HERE / "chokidar.mjs")),
        ("node", "node_modules/chokidar"),
    ),
    Candidate("syslog-ng, lines", _syslog_ng, ("syslog-ng",)),
)
