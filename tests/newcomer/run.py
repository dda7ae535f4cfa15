"""A newcomer's first steps, on a machine that has what the README names and nothing else.

    python tests/newcomer/run.py [full|quick]

A minimal Debian, made by mmdebstrap and kept for the next time; an ordinary user in it; a clone
of the last commit in a directory with a blank in its name; then the README's two commands. No
package registry is asked from inside: what pip installs was downloaded before. Needs root.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.packages import apt_install

REPOSITORY = Path(__file__).parents[2]
#: Outside of the checkout, so that it outlives it. Nothing else outside is changed.
CACHE = Path("/var/cache/paliadin-newcomer")
#: Seconds since its last use, after which a root or a directory of wheels is deleted.
STALE_S = 30 * 86400
HOME = "home/newcomer"
CHECKOUT = f"{HOME}/my work dir/the paliadin"


class Visit(NamedTuple):
    """One newcomer."""

    suite: str
    """Debian's."""
    python: str
    """The suite's."""
    umask: str
    lang: str
    commands: tuple[str, ...]
    oddities: str = ""
    """Shell code, in front of them."""


#: What a terminal, a shell or a user's profile may leave behind, and no test may mind.
_ODDITIES = """
trap '' HUP INT QUIT
export NO_COLOR=1 TZ=XYZ-13:45 COLUMNS=40 LINES=10
export https_proxy=http://127.0.0.1:9 http_proxy=http://127.0.0.1:9 all_proxy=http://127.0.0.1:9
export XDG_CONFIG_HOME=/nowhere XDG_CACHE_HOME=/nowhere
export XDG_DATA_HOME=/nowhere XDG_RUNTIME_DIR=/nowhere
export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONOPTIMIZE= PYTHONHASHSEED=random
export SSH_AUTH_SOCK=/nowhere TMUX=/nowhere,1,0 TMUX_PANE=%1 EDITOR=false
"""
VISITS = {
    # Everything, in the strictest surroundings: README's commands, and what those leave out.
    "full": Visit(
        "bookworm",
        "3.11",
        "077",
        "C",
        ("make demo", "make demo-many", "make test", ".venv/bin/python -m pytest -m slow"),
        _ODDITIES,
    ),
    # The usual ones, on the next release: what depends on the system most.
    "quick": Visit(
        "trixie",
        "3.13",
        "022",
        "C.UTF-8",
        ("make demo", ".venv/bin/python -m pytest -q tests/host tests/sidecar/operator"),
    ),
}

#: All mounts are in the namespace of `unshare` and go with it, and so do processes.
_ENTER = """
base=$1 lower=$2 wheels=$3 repository=$4 checkout=$5
mount -t tmpfs -o mode=755 tmpfs "$base"
mkdir "$base/upper" "$base/work" "$base/root"
mount -t overlay -o "lowerdir=$lower,upperdir=$base/upper,workdir=$base/work" overlay "$base/root"
cd "$base/root"
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs home
mount --bind "$wheels" mnt
printf '[global]\nno-index = true\nfind-links = /mnt\n' >etc/pip.conf
cp /etc/resolv.conf /etc/hosts etc
chroot . useradd --create-home --shell /bin/bash newcomer
mkdir -p "./${checkout%/*}"
git -c safe.directory='*' clone --quiet --no-hardlinks "$repository" "./$checkout"
chroot . chown -R newcomer: home/newcomer
cat >visit
exec chroot . setpriv --reuid=newcomer --regid=newcomer --init-groups \
    env -i HOME=/home/newcomer USER=newcomer LOGNAME=newcomer SHELL=/bin/bash TERM=dumb \
    PATH=/usr/local/bin:/usr/bin:/bin sh -eu /visit
"""
_VISIT = """
ulimit -S -n 1024
umask {umask}
export LANG={lang}
{oddities}
cd /{checkout}
"""


def packages() -> list[str]:
    """What a newcomer is to install by the README."""
    text = (REPOSITORY / "README.md").read_text()
    found = re.search(r"<!-- newcomer -->\n```sh\napt install (.*)\n", text)
    assert found, "README.md has no block that names a newcomer's packages"
    return found[1].split()


def kept(name: str, make: list[str], directory: str) -> Path:
    """The directory that a command made once; it is kept under what determines it.

    Args:
        name: what it is called, in front of a digest of the rest.
        make: the command, to which the directory is added as its last argument.
        directory: its content's other reasons, such as a lock's text.
    """
    key = hashlib.sha256("\n".join([*make, directory]).encode()).hexdigest()[:16]
    path = CACHE / f"{name}-{key}"
    if not path.exists():
        making = Path(tempfile.mkdtemp(prefix="making-", dir=CACHE))
        try:
            subprocess.run([*make, str(making / "made")], check=True)
            (making / "made").rename(path)
        finally:
            shutil.rmtree(making)
    os.utime(path)
    return path


def visit(this: Visit) -> None:
    """Raise `CalledProcessError` where a command fails."""
    root = kept(
        this.suite,
        [
            *("mmdebstrap", "--quiet", "--variant=minbase"),
            *(f"--include={','.join(packages())}", this.suite),
        ],
        "",
    )
    lock = REPOSITORY / "requirements/dev.txt"
    wheels = kept(
        f"wheels-{this.python}",
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--only-binary=:all:", f"--python-version={this.python}", "--require-hashes"),
            *(f"--requirement={lock}", "--dest"),
        ],
        lock.read_text(),
    )
    script = _VISIT.format(
        umask=this.umask, lang=this.lang, oddities=this.oddities, checkout=shlex.quote(CHECKOUT)
    )
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with tempfile.TemporaryDirectory(prefix="newcomer-") as base:
        subprocess.run(
            [
                *(*unshare, "sh", "-euc", _ENTER, "enter"),
                *(base, str(root), str(wheels), str(REPOSITORY), CHECKOUT),
            ],
            input=script + "\n".join(this.commands) + "\n",
            text=True,
            check=True,
        )


def main() -> int:
    """Return 0 only if all commands of the visits that were asked for did."""
    if os.geteuid():
        print("skipped: needs root, to make a newcomer's machine")
        return 0
    apt_install({name for name in ("git", "mmdebstrap") if shutil.which(name) is None})
    CACHE.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or VISITS:
        began = time.monotonic()
        try:
            visit(VISITS[name])
        except subprocess.CalledProcessError as exc:
            print(f"the {name} visit of a newcomer failed with {exc.returncode}", file=sys.stderr)
            return 1
        print(f"the {name} visit of a newcomer took {time.monotonic() - began:.0f} s")
    for path in CACHE.iterdir():
        if time.time() - path.stat().st_mtime > STALE_S:
            shutil.rmtree(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
