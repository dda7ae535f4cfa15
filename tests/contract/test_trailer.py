from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from paliadin_contract.trailer import TAIL_BYTES, Trailer, is_whole, read_tail, split

FULL = Trailer(used_tools=("search", "read"), rows_seen=3, classifier_tag="deadlines")

LINES = "used_tools: search, read\nrows_seen: 3\nclassifier_tag: deadlines\n"
JSON = '{"used_tools": ["search", "read"], "rows_seen": 3, "classifier_tag": "deadlines"}\n'
#: One trailer, in the spellings that are read alike.
SPELLINGS = {
    "lines": LINES,
    "lines, in brackets and quotes": (
        'used_tools: ["search", "read"]\nrows_seen: "3"\nclassifier_tag: \'deadlines\'\n'
    ),
    "lines with equal signs": LINES.replace(": ", "="),
    "lines as of a JSON object": (
        ' "used_tools": ["search", "read"],\n "rows_seen": 3,\n "classifier_tag": "deadlines",\n'
    ),
    "lines with blank ones between": LINES.replace("\n", "\n\n"),
    "lines with other names": f"model: x\n{LINES}",
    "lines of Windows": LINES.replace("\n", "\r\n"),
    "JSON": JSON,
    "JSON over several lines": JSON.replace(", ", ",\n  "),
}
every_spelling = pytest.mark.parametrize("inner", SPELLINGS.values(), ids=SPELLINGS)

#: Text in which the pieces that matter are frequent.
pieces = st.lists(
    st.sampled_from(
        [
            *("[paliadin-meta]", "[/paliadin-meta]", "\n", "\r\n", " "),
            *("used_tools", "rows_seen", "classifier_tag", "{", "}", "[", ",", ":", '"'),
            *("text", "9" * 5000, "\ud800"),
        ]
    )
).map("".join)
texts = st.one_of(st.text(st.characters(codec=None)), pieces)


def has_text(content: bytes) -> bool:
    return read_tail(content)[1]


def closed(inner: str, before: str = "Yes.\n\n") -> str:
    return f"{before}[paliadin-meta]\n{inner}[/paliadin-meta]\n"


def unclosed(inner: str, before: str = "Yes.\n\n") -> str:
    return f"{before}[paliadin-meta]\n{inner}"


@every_spelling
def test_split(inner: str) -> None:
    """Text and trailer are separated in every spelling, with and without the closing tag."""
    assert split(closed(inner)) == ("Yes.", FULL)
    assert split(unclosed(inner)) == ("Yes.", FULL)


LISTED = Trailer(
    used_tools=("search", "read"), rows_seen=7, rows_by_tool=(3, 4), classifier_tag="deadlines"
)


@pytest.mark.parametrize(
    "inner",
    [
        '{"used_tools": ["search", "read"], "rows_seen": [3, 4], "classifier_tag": "deadlines"}\n',
        '{"used_tools": "search, read", "rows_seen": ["3", 4], "classifier_tag": ["deadlines"]}\n',
        "used_tools: search, read\nrows_seen: 3, 4\nclassifier_tag: deadlines\n",
        'used_tools = ["search", "read"]\nrows_seen = [3, 4]\nclassifier_tag = [deadlines]\n',
        "used_tools: [search, read]\nrows_seen: [ '3', \"4\" ]\nclassifier_tag: deadlines\n",
        "used_tools:\n- search\n- read\nrows_seen:\n  - 3\n  - 4\nclassifier_tag:\n  - deadlines\n",
        "rows_seen: [3, 4]\nclassifier_tag: deadlines\nmodel: x, y\nused_tools: [search, read]\n",
        'used_tools: [\n  "search",\n  "read"\n]\nrows_seen: [3,\n4]\nclassifier_tag: deadlines\n',
        "* used_tools: search, read\n* rows_seen: 3, 4\n* classifier_tag: deadlines\n",
        "used_tools:\n* search\n* read\nrows_seen:\n* 3\n* 4\nclassifier_tag: deadlines\n",
    ],
)
def test_lists(inner: str) -> None:
    """Lists are read in every spelling: their sum is the one number, and the list is kept."""
    assert split(closed(inner)) == ("Yes.", LISTED)
    assert split(unclosed(inner)) == ("Yes.", LISTED)
    assert split(closed(inner.replace("\n", "\r\n"))) == ("Yes.", LISTED)


@pytest.mark.parametrize(
    "inner",
    [
        '{"used_tools": ["search", "read"], "rows_seen": NaN, "classifier_tag": "deadlines"}',
        '{"used_tools": ["search", "read"], "rows_seen": [3, null], "classifier_tag": "deadlines"}',
        '{"used_tools": ["search", "read"], "rows_seen": 3 rows, "classifier_tag": "deadlines"}',
        '{"used_tools": ["search", "read"], "rows_seen": , "classifier_tag": "deadlines",}',
        '{"used_tools": ["search", "read", "rows_seen": x, "classifier_tag": "deadlines"',
        "{'used_tools': ['search', 'read'], 'rows_seen': None, 'classifier_tag': 'deadlines'}",
        "{used_tools: [search, read], rows_seen: many, classifier_tag: deadlines}",
        "used_tools: search, read\nrows_seen: [3, many]\nclassifier_tag: deadlines",
        "used_tools: search, read\nrows_seen: {\nclassifier_tag: deadlines",
    ],
)
def test_one_unreadable_field(inner: str) -> None:
    """A field that cannot be read costs no other, also where it spoils the whole object."""
    trailer = Trailer(used_tools=("search", "read"), classifier_tag="deadlines")
    assert split(closed(f"{inner}\n")) == ("Yes.", trailer)


@every_spelling
@pytest.mark.parametrize(
    ("opening", "closing"), [("```", "```"), ("```text", "````"), ("  ~~~~ yaml", "~~~~  ")]
)
def test_fence(inner: str, opening: str, closing: str) -> None:
    """A code fence around the trailer, or in it, goes with it, and must end before it is whole."""
    contents = [
        f"Yes.\n\n{opening}\n[paliadin-meta]\n{inner}[/paliadin-meta]\n{closing}\n",
        f"Yes.\n\n{opening}\n\n[paliadin-meta]\n{inner}{closing}\n",
        f"Yes.\n\n[paliadin-meta]\n{opening}\n{inner}{closing}\n[/paliadin-meta]\n",
        f"Yes.\n\n[paliadin-meta]\n{opening}\n{inner}{closing}\n",
    ]
    for content in contents:
        for spelt in (content, content.replace("\n", "\r\n")):
            assert split(spelt) == ("Yes.", FULL)
            assert is_whole(spelt.encode())
            assert not is_whole(spelt[: spelt.rindex(closing.strip()[0] * 3)].encode())


def test_code_before_a_trailer() -> None:
    """A block of code that ends right before the trailer is text, and its fence stays with it."""
    code = "Yes:\n\n```python\nprint()\n```"
    assert split(closed(LINES, before=f"{code}\n")) == (code, FULL)
    assert is_whole(closed(LINES, before=f"{code}\n").encode())
    fenced = f"{code}\n```\n{closed(LINES, before='')}```\n"
    assert split(fenced) == (code, FULL)
    # An answer that stands in a fence as a whole keeps its text.
    assert split(f"```markdown\nYes.\n\n{closed(LINES, before='')}```\n")[0] == "```markdown\nYes."


def test_code_within_a_line() -> None:
    """Backticks that open and close in one line open no block of code: the line is text."""
    for line in ("```x = 1``` ist Code", "```nur dies```"):
        for content in (closed(LINES, before=f"{line}\n\n"), unclosed(LINES, before=f"{line}\n")):
            assert split(content) == (line, FULL)
            assert is_whole(content.encode())


@pytest.mark.parametrize(
    "content",
    [
        f"So:\n```\n[paliadin-meta]\n{LINES}```\nUnd weiter.\n",
        f"So:\n~~~~yaml\n[paliadin-meta]\n{LINES}~~~~\n\n- Und weiter: so\n",
        f"So:\n\n[paliadin-meta]\n{LINES}\nUnd weiter im Text.\n",
        f"So:\n\n[paliadin-meta]\n{LINES}\nFazit: es geht weiter.\n",
        "So beginnt es:\n[paliadin-meta]\nund dann folgen die Namen, zum Beispiel used_tools: x\n",
    ],
)
def test_a_quote_without_its_end(content: str) -> None:
    """Text behind a block without its closing tag is text: nothing of it is lost."""
    for spelt in (content, content.replace("\n", "\r\n")):
        assert split(spelt) == (spelt, None)
        assert not is_whole(spelt.encode())


def test_a_tag_with_a_comma() -> None:
    """A single value may hold a comma: nothing of it is lost."""
    assert split(closed("classifier_tag: a, b\n"))[1] == Trailer(classifier_tag="a, b")


@every_spelling
def test_whole(inner: str) -> None:
    """A trailer is whole with its closing tag, or with its names and a final newline."""
    assert is_whole(closed(inner).encode())
    assert is_whole(closed(inner).rstrip().encode())
    assert is_whole(unclosed(inner).encode())


@every_spelling
def test_no_half_is_whole(inner: str) -> None:
    """While the block is being written, no beginning of it is whole before its last name is."""
    content = unclosed(inner)
    end = max(content.rindex(name) for name in ("used_tools", "rows_seen", "classifier_tag"))
    assert not any(is_whole(content[:length].encode()) for length in range(end + 1))


def test_no_unfinished_line_is_whole() -> None:
    """Without a closing tag, the last line must have ended."""
    content = unclosed(LINES)
    assert not any(is_whole(content[:length].encode()) for length in range(len(content)))


@pytest.mark.parametrize(
    "begun",
    [
        *("rows_seen:", "rows_seen: [", "rows_seen: [3,", "rows_seen: [3", "rows_seen: {", "x: |"),
        *("rows_seen: >", "rows_seen=3,", "rows_seen:\n- 3", "rows_seen:\n  * 3", "rows_seen ="),
    ],
)
@pytest.mark.parametrize("fence", ["", "```\n", "~~~ yaml\n"])
def test_no_unfinished_list_is_whole(begun: str, fence: str) -> None:
    """Without a closing tag, a value that more lines may belong to has not ended."""
    content = f"{fence}{unclosed(f'used_tools: a{chr(10)}classifier_tag: x{chr(10)}{begun}', '')}\n"
    if "rows_seen" not in begun:
        content = content.replace("used_tools: a", "used_tools: a\nrows_seen: 3")
    assert not is_whole(content.encode())
    assert not is_whole(content.replace("\n", "\r\n").encode())


def test_code_in_code_is_not_whole_before_its_end() -> None:
    """An object in a block of code in another one: both must have ended."""
    content = f"Yes.\n\n```\n[paliadin-meta]\n```json\n{JSON}```\n"
    assert not any(is_whole(content[:length].encode()) for length in range(content.index("}") + 3))


def test_a_huge_block() -> None:
    """Of a block that is longer than any trailer, the beginning is read."""
    text, trailer = split(closed(LINES + "x: y\n" * 100_000))
    assert (text, trailer) == ("Yes.", FULL)


def test_no_unfinished_json_is_whole() -> None:
    """Without a closing tag, an object that lacks its end is not whole."""
    content = unclosed('{\n"used_tools": [],\n"rows_seen": 3,\n"classifier_tag": "x"\n')
    assert not is_whole(content.encode())
    assert is_whole(f"{content}}}\n".encode())


@pytest.mark.parametrize("missing", ["used_tools", "rows_seen", "classifier_tag"])
def test_a_missing_name(missing: str) -> None:
    """A trailer that lacks one of its names is read, but is not whole."""
    inner = LINES.replace(missing, "other")
    assert not is_whole(unclosed(inner).encode())
    assert not is_whole(closed(inner).encode())
    assert split(closed(inner))[0] == "Yes."


@pytest.mark.parametrize(
    "content",
    [
        "",
        "Yes.\n",
        "Yes. [paliadin-meta]\n" + LINES,
        " [paliadin-meta]\n" + LINES,
        "[paliadin-meta] x\n" + LINES,
        "[Paliadin-Meta]\n" + LINES,
        LINES + "[/paliadin-meta]\n",
    ],
)
def test_no_trailer(content: str) -> None:
    """Without an opening line of its own there is no whole trailer, and all is text."""
    assert not is_whole(content.encode())
    assert split(content) == (content, None)


def test_a_quoted_block() -> None:
    """A block that the answer goes on after is a quote: no text is lost, and nothing has ended."""
    content = closed(LINES) + "So much for how a trailer looks.\n"
    assert split(content) == (content, None)
    assert has_text(content.encode())
    assert not is_whole(content.encode())
    assert not is_whole((unclosed(LINES) + "So much for how it looks.\n").encode())


def test_a_quote_and_a_trailer() -> None:
    """Of several blocks the last is the trailer, and those before it are text."""
    quote = closed("used_tools: quoted\n")
    assert split(closed(LINES, before=quote)) == (quote.rstrip(), FULL)
    assert is_whole(closed(LINES, before=quote).encode())


@pytest.mark.parametrize(
    ("inner", "trailer"),
    [
        ("", Trailer()),
        ("~~~ no syntax at all\n", Trailer()),
        ("[]\n", Trailer()),
        ("[" * 100_000, Trailer()),
        ("used_tools:\nrows_seen:\nclassifier_tag:\n", Trailer()),
        ('{"used_tools": 3, "rows_seen": [], "classifier_tag": 7}\n', Trailer()),
        ('{"used_tools": [1, "a", " ", null]}\n', Trailer(used_tools=("a",))),
        ('{"classifier_tag": "\ud800"}\n', Trailer()),
        ("classifier_tag: '\n", Trailer(classifier_tag="'")),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_unreadable(inner: str, trailer: Trailer) -> None:
    """What cannot be read in a trailer is left empty, and never costs the answer."""
    assert split(closed(inner)) == ("Yes.", trailer)


@pytest.mark.parametrize("rows", ["-1", "1.0", "true", "null", "٣", "1" * 19, "1" * 5000])
def test_no_count(rows: str) -> None:
    """Only a whole number of at most 18 digits counts rows."""
    for inner in (f"rows_seen: {rows}\n", f'{{"rows_seen": {rows}}}\n'):
        assert split(closed(inner)) == ("Yes.", Trailer())


def test_text() -> None:
    """A file has text when anything but white space stands before its trailer."""
    assert has_text(b"Yes.")
    assert has_text(b"\xff")
    assert has_text(closed(LINES).encode())
    assert not has_text(b" \n\t")
    assert not has_text(closed(LINES, before="").encode())
    assert not has_text(unclosed(LINES, before="\n\n").encode())
    assert not has_text(b"[paliadin-meta]")


def test_tail() -> None:
    """The end of a file shows whether it has ended, even where the cut splits a character."""
    content = ("ä" * TAIL_BYTES + "\n" + closed(LINES)).encode()
    assert is_whole(content[-TAIL_BYTES:])
    assert is_whole(content[-TAIL_BYTES + 1 :])


@given(texts)
@example("[paliadin-meta]\n\ud800")
def test_split_never_raises(answer: str) -> None:
    """Whatever a backend returned, the text is a beginning of it, and all of it if no trailer."""
    text, trailer = split(answer)
    assert answer.startswith(text)
    assert trailer is not None or text == answer


@given(st.one_of(st.binary(), texts.map(lambda text: text.encode(errors="surrogatepass"))))
def test_bytes_never_raise(content: bytes) -> None:
    """Whatever a file holds, what is whole has a trailer, and what has text keeps it."""
    text, trailer = split(content.decode(errors="replace"))
    assert not is_whole(content) or trailer is not None
    assert has_text(content) == bool(text.strip())


@given(st.text(), st.sampled_from(sorted(SPELLINGS)))
def test_any_text_before(text: str, spelling: str) -> None:
    """A trailer is found behind any text, and no text is lost."""
    found, trailer = split(closed(SPELLINGS[spelling], before=f"{text}\n"))
    assert (found, trailer) == (text.rstrip(), FULL)
