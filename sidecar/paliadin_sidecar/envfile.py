"""A file of `NAME=value` lines, read as systemd reads a unit's EnvironmentFile=.

systemd gives the daemon its variables, and the commands read the same file themselves: a value
must not be one thing here and another there. So a comment is a line of its own, and what stands
behind a value is a part of it (systemd.exec(5), EnvironmentFile=).
"""

from __future__ import annotations

import re

__all__ = ["assignments"]

#: A comment, or all up to the "=" or to the end of a line that has none.
_NAME = re.compile(r"[ \t\r\n]*(?:[#;][^\r\n]*|([^\r\n][^=\r\n]*)?)(=|[\r\n]|\Z)")
#: A value is quoted parts, and at its end one without quotes, in which a quote is any character.
#: What is still open at the end of the file is closed there.
_PART = re.compile(
    r"""[ \t]+
    | '(?P<single>[^']*)'?
    | "(?P<double>(?:\\[\s\S]|[^"\\])*)\\?"?
    | (?P<plain>(?:\\[\s\S]|[^\\\r\n])+?)[ \t]*(?=[\r\n]|\\?\Z)
    | \\\Z""",
    re.VERBOSE,
)


def assignments(text: str) -> list[tuple[str, str]]:
    """Each name and its value, in their order: of a name that comes twice, the last counts.

    What systemd ignores is here too, so that a program can say so, under a name that no variable
    can have: `export A`, or of a line without `=` its first word, with that said behind it.

    Args:
        text: the file's, its line ends as they are.
    """
    found = []
    at = 0
    while at < len(text) and (name := _NAME.match(text, at)):
        at = name.end()
        if not (name[1] or "").strip("\ufeff \t") or name[1].startswith("\ufeff#"):
            continue  # a comment, also behind an editor's byte order mark, or nothing
        if name[2] != "=":
            # Not all of the line: it may hold a secret.
            found.append((f"{name[1].split()[0]} without =", ""))
            continue
        value = ""
        while part := _PART.match(text, at):
            at = part.end()
            value += _unescaped(part)
        found.append((name[1].strip(" \t"), value))
    return found


def _unescaped(part: re.Match[str]) -> str:
    if part["single"] is not None:
        return part["single"]
    if part["double"] is not None:
        # As in a shell: before any other character the backslash stays.
        return re.sub(r'\\(?:\n|(["\\`$]))', lambda pair: pair[1] or "", part["double"])
    return re.sub(r"\\(?:[\r\n]|([\s\S]))", lambda pair: pair[1] or "", part["plain"] or "")
