"""Texts of environment files, and what systemd makes of each."""

from __future__ import annotations

READ: list[tuple[str, dict[str, str]]] = [
    ("A=1\nB=2\n", {"A": "1", "B": "2"}),
    ("A=1", {"A": "1"}),
    ("A=\n", {"A": ""}),
    ("A\nB=2\n", {"B": "2"}),
    ("A=1\nA=2\n", {"A": "2"}),
    ("A=7   # seconds\n", {"A": "7   # seconds"}),
    ("A=#7\n", {"A": "#7"}),
    ("# A=1\n;B=2\n  # C=3\nD=4\n", {"D": "4"}),
    ("export A=1\nB=2\n", {"B": "2"}),
    ("1A=1\nA-B=2\nC=3\n", {"C": "3"}),
    ("  A = \t1 2 \t\nB=2\n", {"A": "1 2", "B": "2"}),
    ("A=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
    ("A='two  words'\nB=\"x y\"\n", {"A": "two  words", "B": "x y"}),
    ("A='a'b\nB='a' b\nC='a' 'b'\n", {"A": "ab", "B": "ab", "C": "ab"}),
    ("A=it's\nB=a\"b\n", {"A": "it's", "B": 'a"b'}),
    ("A='a' # c\n", {"A": "a# c"}),
    ('A=\'a\\n\'\nB="a\\n\\$\\""\n', {"A": "a\\n", "B": 'a\\n$"'}),
    ("A=a\\nb\\\\c\\ \n", {"A": "anb\\c "}),
    ("A=a\\\nb\nB=2\n", {"A": "ab", "B": "2"}),
    ('A="a\\\nb\nc"\nB=2\n', {"A": "ab\nc", "B": "2"}),
    ("A='a\nb'\nB=2\n", {"A": "a\nb", "B": "2"}),
    ("A='open\nB=2\n", {"A": "open\nB=2\n"}),
    ("A=end\\", {"A": "end"}),
    ("A=$HOME ${HOME}\n", {"A": "$HOME ${HOME}"}),
    ("=A=1\nB=2\n", {"B": "2"}),
    ("A=b=c\n", {"A": "b=c"}),
]
