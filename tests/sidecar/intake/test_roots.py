from __future__ import annotations

import errno
import grp
import os
import pwd
import tempfile
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.attack import exchanging
from support.users import NOBODY, ORDINARY, root_only, without_privilege

from paliadin_sidecar.host.storage import user_name
from paliadin_sidecar.intake.roots import Root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ME = os.geteuid()
#: A number that no group here has, nor any user as the primary one.
NO_GROUP = 1 + max([*(g.gr_gid for g in grp.getgrall()), *(u.pw_gid for u in pwd.getpwall())])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A directory that can be trusted, below another one."""
    path = tmp_path / "above" / "root"
    path.mkdir(parents=True)
    for folder in (path, path.parent):
        folder.chmod(0o755)
    return path


@pytest.fixture
def root(path: Path) -> Iterator[Root]:
    root = Root(path, ME)
    yield root
    root.close()


# --- is it there, and ours? -----------------------------------------------------------------


def listed(root: Root, *, always: bool) -> list[str] | None:
    """The names of a directory that one call lists."""
    found = root.names(always=always)
    return None if found is None else list(found)


def test_armed(root: Root, path: Path) -> None:
    """A directory that is there and ours is opened, and reported once."""
    assert root.check() == "armed"
    assert (root.state, root.why) == ("armed", "")
    assert root.fd is not None
    assert os.fstat(root.fd).st_ino == path.stat().st_ino
    assert not os.get_inheritable(root.fd)
    assert root.check() is None


def test_missing(root: Root, path: Path) -> None:
    """A directory that is not there is reported once, and armed as soon as it is."""
    path.rmdir()
    assert root.check() == "missing"
    assert (root.state, root.why, root.fd) == ("missing", f"{path} does not exist", None)
    assert root.check() is None
    path.mkdir(mode=0o700)
    assert root.check() == "armed"
    path.rmdir()
    assert root.check() == "missing"
    assert root.fd is None


def test_missing_above(root: Root, path: Path) -> None:
    """Of a path that is not there the first part that is missing is named."""
    path.rmdir()
    path.parent.rmdir()
    assert root.check() == "missing"
    assert root.why == f"{path.parent} does not exist"


def test_replaced(root: Root, path: Path) -> None:
    """A directory that was deleted and made again is reported, and the new one is opened."""
    root.check()
    path.rename(path.with_name("old"))
    path.mkdir(mode=0o700)
    (path / "new").touch()
    assert root.check() == "replaced"
    assert root.state == "armed"
    assert listed(root, always=False) == ["new"]
    assert root.check() is None


@contextmanager
def before_call(n: int, act: Callable[[], object]) -> Iterator[list[str]]:
    """Does something just before the nth call that asks the system about a name or a descriptor.

    The calls are the real ones on real directories: only the moment is chosen. Gives the names of
    the calls, in their order.
    """
    calls: list[str] = []

    def wrap(name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def call(*args: object, **kwargs: object) -> object:
            calls.append(name)
            if len(calls) == n:
                act()
            return real(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patched:
        for name in ("open", "stat", "lstat", "fstat", "scandir", "getxattr"):
            patched.setattr(os, name, wrap(name))
        yield calls


def moments(path: Path) -> range:
    """Every moment at which something may happen while a root is looked at and listed."""
    with closing(Root(path, ME)) as root, before_call(0, lambda: None) as calls:
        root.check()
        listed(root, always=True)
    return range(1, len(calls) + 1)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A tree with a root of the same name, and with other files, that was never named to us."""
    path = tmp_path / "secret" / "root"
    path.mkdir(parents=True)
    (path / "theirs").touch()
    (tmp_path / "link").symlink_to("secret")
    return path


def exchange(one: Path, two: Path) -> None:
    """Give each the other's name."""
    aside = one.with_name("aside")
    one.rename(aside)
    two.rename(one)
    aside.rename(two)


def test_exchanged_for_a_link_at_any_moment(path: Path, secret: Path, tmp_path: Path) -> None:
    """An ancestor that becomes a link to another tree, and back, never leads there."""
    (path / "mine").touch()
    for first in moments(path):
        # The second exchange comes one or more calls later, or never.
        for second in range(first + 1, len(moments(path)) + 2):
            with closing(Root(path, ME)) as root:
                swap = partial(exchange, path.parent, tmp_path / "link")
                with before_call(first, swap), before_call(second, swap) as calls:
                    root.check()
                    try:
                        names = listed(root, always=True)
                    finally:
                        done = len(calls) >= second
                assert names in (None, ["mine"])
                assert (names is None) == (root.state != "armed")
            if not done:
                swap()


def test_exchanged_for_a_link_all_the_time(path: Path, secret: Path, tmp_path: Path) -> None:
    """The same by another process, which the system lets run when it likes."""
    (path / "mine").touch()
    with exchanging(path.parent, tmp_path / "link"):
        for _ in range(3000):
            with closing(Root(path, ME)) as root:
                root.check()
                assert listed(root, always=True) in (None, ["mine"])
                assert root.state in ("armed", "untrusted")


def test_gone_while_it_was_looked_at(path: Path, tmp_path: Path) -> None:
    """A directory that goes at any moment is missing, or empty, and the next look says why."""
    for n in moments(path):
        with closing(Root(path, ME)) as root:
            with before_call(n, path.rmdir):
                root.check()
                assert listed(root, always=True) in (None, [])
            root.check()
            assert (root.state, root.why) == ("missing", f"{path} does not exist")
        path.mkdir(mode=0o700)


def link(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to("real")


def file(path: Path) -> None:
    path.rmdir()
    path.touch()


def link_above(path: Path) -> None:
    path.parent.rename(path.parent.with_name("real"))
    path.parent.symlink_to("real")


def file_above(path: Path) -> None:
    path.rmdir()
    file(path.parent)


def theirs(path: Path) -> None:
    os.chown(path, NOBODY, -1)


def theirs_above(path: Path) -> None:
    os.chown(path.parent, NOBODY, -1)


def sticky_of_theirs_above(path: Path) -> None:
    theirs_above(path)
    path.parent.chmod(0o1777)


def for_a_group(path: Path) -> None:
    os.chown(path, -1, NO_GROUP)
    path.chmod(0o775)


def for_a_group_above(path: Path) -> None:
    for_a_group(path.parent)


LINK = "{0} is a symbolic link: name the real directory in PALIADIN_WATCH (readlink -f {0})"
NO_DIRECTORY = "{} is no directory"
FOREIGN = f"{{}} belongs to user {user_name(NOBODY)}, not to {user_name(ME)} (PALIADIN_OWNER)"
BY_OTHERS = "{0} is writable by others: chmod o-w {0}"
BY_GROUP = (
    f"{{0}} is writable by group {NO_GROUP} (which is not private to user "
    f"{pwd.getpwuid(ME).pw_name}): chmod g-w {{0}}"
)


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (link, LINK),
        (file, NO_DIRECTORY),
        (lambda path: path.chmod(0o757), BY_OTHERS),
        (lambda path: path.chmod(0o1777), BY_OTHERS),
        pytest.param(theirs, FOREIGN, marks=root_only),
        pytest.param(for_a_group, BY_GROUP, marks=root_only),
    ],
    ids=["link", "file", "writable", "sticky", "foreign", "group"],
)
def test_untrusted(root: Root, path: Path, harm: Callable[[Path], None], why: str) -> None:
    """What others may change is not opened, and reported once with what mends it."""
    harm(path)
    assert root.check() == "untrusted"
    assert (root.state, root.why, root.fd) == ("untrusted", why.format(path), None)
    assert listed(root, always=True) is None
    assert root.check() is None


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (link_above, LINK),
        (file_above, NO_DIRECTORY),
        (lambda path: path.parent.chmod(0o757), BY_OTHERS),
        pytest.param(sticky_of_theirs_above, FOREIGN, marks=root_only),
        pytest.param(theirs_above, FOREIGN, marks=root_only),
        pytest.param(for_a_group_above, BY_GROUP, marks=root_only),
    ],
    ids=["link", "file", "writable", "sticky of another", "foreign", "group"],
)
def test_untrusted_above(root: Root, path: Path, harm: Callable[[Path], None], why: str) -> None:
    """Whoever may change a directory above decides what we would read: that one is named."""
    harm(path)
    assert root.check() == "untrusted"
    assert (root.state, root.why) == ("untrusted", why.format(path.parent))


def test_unseen(tmp_path: Path) -> None:
    """What the system does not let us see is not trusted."""
    long = tmp_path / ("x" * 300)
    root = Root(long, ME)
    assert root.check() == "unreadable"
    assert root.error == errno.ENAMETOOLONG
    assert root.why == f"{long} cannot be looked at (File name too long)"


@pytest.mark.parametrize(
    ("closed", "why"),
    [("above", "cannot be looked at"), ("root", "cannot be opened")],
)
def test_unseen_without_privilege(closed: str, why: str) -> None:
    """A directory that may not be entered, or not be listed, is not trusted."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        path = Path(name) / "above" / "root"
        path.mkdir(parents=True)
        os.chown(path, ORDINARY, -1)
        folder = {"above": path.parent, "root": path}[closed]
        folder.chmod(0)
        with without_privilege():
            root = Root(path, ORDINARY)
            assert root.check() == "unreadable"
            assert root.check() is None
            assert root.error == errno.EACCES
        assert root.why == f"{path} {why} (Permission denied)"
        folder.chmod(0o700)


def test_trust_that_comes_and_goes(root: Root, path: Path) -> None:
    """Each change of what is wrong is reported; the directory is open only while it is trusted."""
    assert root.check() == "armed"
    path.chmod(0o777)
    assert root.check() == "untrusted"
    assert root.fd is None
    path.rmdir()
    path.touch()
    assert root.check() == "untrusted"
    assert root.why == f"{path} is no directory"
    path.unlink()
    assert root.check() == "missing"
    path.mkdir(mode=0o700)
    assert root.check() == "armed"


@root_only
def test_sticky_above(root: Root, path: Path) -> None:
    """A sticky directory of root's, such as /tmp, may be writable by all."""
    path.parent.chmod(0o1777)
    assert root.check() == "armed"


@root_only
def test_above_of_the_owner(path: Path) -> None:
    """Directories above may be the owner's as well as root's."""
    for folder in (path, path.parent):
        os.chown(folder, NOBODY, -1)
    root = Root(path, NOBODY)
    assert root.check() == "armed"
    root.close()


@root_only
@pytest.mark.parametrize(
    ("ids", "group", "state"),
    [
        ((1, 1), ("daemon", []), "armed"),
        ((1, 1), ("daemon", ["daemon"]), "armed"),
        ((1, 1), ("daemon", ["daemon", "other"]), "untrusted"),
        ((1, 1), ("others", []), "untrusted"),
        ((1, 2), ("daemon", []), "untrusted"),
        ((1, 0), ("root", []), "armed"),
        ((1, 0), ("root", ["other"]), "untrusted"),
        ((1, 2), None, "untrusted"),
        ((54321, 54321), ("daemon", []), "untrusted"),  # a user that this host does not know
        ((54321, 0), ("root", []), "armed"),
    ],
)
def test_private_group(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ids: tuple[int, int],
    group: tuple[str, list[str]] | None,
    state: str,
) -> None:
    """A group may write in which nobody but the owner can be, or which is root's."""

    def getgrgid(found: int) -> grp.struct_group:
        if group is None:
            raise KeyError(found)
        return grp.struct_group((group[0], "x", found, group[1]))

    def getpwuid(found: int) -> pwd.struct_passwd:
        if found != 1:
            raise KeyError(found)
        return pwd.struct_passwd(("daemon", "x", 1, 1, "", "/", ""))

    # The users and groups of this host are not ours to make.
    monkeypatch.setattr(grp, "getgrgid", getgrgid)
    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    os.chown(path, *ids)
    path.chmod(0o770)
    root = Root(path, ids[0])
    root.check()
    assert root.state == state
    root.close()


# --- what does it hold? ---------------------------------------------------------------------


def rest(path: Path) -> None:
    """As if nothing had come or gone for a while."""
    os.utime(path, (1_000_000, 1_000_000))


def test_names(root: Root, path: Path) -> None:
    """A directory is listed when something came or went, and not otherwise."""
    assert listed(root, always=True) is None
    (path / "a").touch()
    rest(path)
    root.check()
    assert listed(root, always=False) == ["a"]
    assert listed(root, always=False) is None
    (path / "a").write_text("in place")
    assert listed(root, always=False) is None
    assert listed(root, always=True) == ["a"]
    (path / "a").rename(path / "b")
    assert listed(root, always=False) == ["b"]


def test_names_within_a_tick(root: Root, path: Path) -> None:
    """A time that is young proves nothing: within the same tick more may have come."""
    root.check()
    path.chmod(0o700)
    (path / "a").touch()
    assert listed(root, always=False) == ["a"]
    assert listed(root, always=False) == ["a"]
    rest(path)
    assert listed(root, always=False) == ["a"]
    assert listed(root, always=False) is None


def test_names_anew(root: Root, path: Path) -> None:
    """Another directory is listed, although its time is the old one's."""
    rest(path)
    root.check()
    listed(root, always=False)
    path.rename(path.with_name("old"))
    path.mkdir(mode=0o700)
    rest(path)
    root.check()
    assert listed(root, always=False) == []


def test_names_any_name(root: Root, path: Path) -> None:
    """Every name is listed, also one that is no UTF-8."""
    os.close(os.open(os.fsencode(path) + b"/\xff.txt", os.O_WRONLY | os.O_CREAT))
    (path / ".hidden~").touch()
    root.check()
    assert sorted(listed(root, always=False) or []) == [".hidden~", "\udcff.txt"]


def test_names_of_what_was_opened(root: Root, path: Path) -> None:
    """What was opened is listed, whatever the path leads to meanwhile."""
    (path / "a").touch()
    root.check()
    path.rename(path.with_name("old"))
    path.mkdir()
    assert listed(root, always=True) == ["a"]


def test_names_of_what_is_gone(root: Root, path: Path) -> None:
    """A directory that was removed while it was open holds nothing."""
    root.check()
    path.rmdir()
    assert listed(root, always=True) == []


def test_a_listing_that_was_not_ended(root: Root, path: Path) -> None:
    """It begins again, though no name moved; that of another directory does in any case."""
    os.utime(path, (0, 0))
    root.check()
    names = root.names(always=False)
    assert names is not None
    (path / "a").touch()
    os.utime(path, (1, 1))
    assert list(names) == ["a"]
    for name in "bcde":
        (path / name).touch()
    os.utime(path, (2, 2))
    names = root.names(always=False)
    assert names is not None
    next(names)
    assert sorted(listed(root, always=False) or []) == [*"abcde"]
    assert listed(root, always=False) is None
    path.rename(path.with_name("old"))
    path.mkdir(mode=0o700)
    (path / "new").touch()
    assert root.check() == "replaced"
    assert listed(root, always=False) == ["new"]


def test_a_way_that_was_not_changed(root: Root, path: Path) -> None:
    """It is as checked until a step of it is another one, or is judged by something else."""
    assert not root.is_as_checked()
    root.check()
    assert root.is_as_checked()
    changes: list[Callable[[], object]] = [
        lambda: path.chmod(0o750),
        lambda: path.rename(path.with_name("old")),
        path.mkdir,
        lambda: path.parent.rename(path.parent.with_name("elsewhere")),
        lambda: path.parent.symlink_to("elsewhere"),
    ]
    for change in changes:
        change()
        assert not root.is_as_checked()
        root.check()
        assert root.is_as_checked() == (root.state == "armed")
