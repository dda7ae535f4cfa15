"""What an answer looks like in a terminal, and that nothing of it is missing."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from paliadin_client.render import Answer

WIDTHS = (1, 2, 3, 7, 20, 40, 80, 200)


def shown(text: str, width: int = 80, *, colours: bool = False) -> str:
    console = Console(
        force_terminal=colours,
        width=width,
        color_system="256" if colours else None,
        legacy_windows=False,
    )
    with console.capture() as capture:
        console.print(Answer(text), crop=False)
    return capture.get()


def solid(text: str) -> str:
    return "".join(text.split())


#: Nothing of these may change, but for white space.
VERBATIM = [
    "<EP1234567>",
    "Vgl. <EP1234567> und <https://example.org/ü?a=b&c=d>, <a:b>.",
    "3<a und b>5, a<b>c, <b>fett</b>, x<!-- y -->z",
    "2*3*4=24 und a*b, x**2**y, 2 *3*4",
    "(a)*(b)*(c), [0-9]*x*[1-2], {x}*{y}*{z}, $*$*$, %*x*%, (*)(*), x=*y*, a***b***c",
    "a\n=\nb, c\n===\nd\n-\ne",
    "D:\\Akten\\\nund D:\\",
    "&lt; &amp; &nbsp; &#65;",
    r"\<EP\> \* \[1\] \(x\)",
    "[1]: EP1234567 Die Entgegenhaltung",
    '[1]: https://example.org/a "Titel"',
    '[Text](https://example.org/%20ü "Titel") und ![Bild](bild.png "Titel")',
    "nicht ~~gestrichen~~",
    "Donaudampfschifffahrtsgesellschaftskapitän " * 5,
    "期限是明天。" * 40,
    "3. Vorrichtung\n7. Verfahren\n12. Verwendung",
    "3) Vorrichtung\n7) Verfahren",
    "- 5 °C\n- 7 °C",
    "+ 5 EUR\n+ 7 EUR",
    "§ 4 Abs. 2 S. 1 Nr. 3 lit. a) PatG; Art. 54(3) EPÜ",
]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("text", VERBATIM)
def test_verbatim(text: str, width: int) -> None:
    """What only looks like Markdown, or says more than its rendering, is shown as it was typed."""
    assert solid(text) in solid(shown(f"Vorher.\n\n{text}\n\nNachher.", width))


#: Constructions whose frame may change, but no character of their text.
ODD = [
    "> 5 mm",
    "<div>\nEin Block\n</div>\n\ndanach",
    "<script>\nalert(1)\n</script>",
    "| Nr. | Merkmal |\n|---|---|\n| 1 | " + "Donaudampfschifffahrtsgesellschaft" * 8 + " |\n",
    "|" + "Spalte|" * 30 + "\n|" + "---|" * 30 + "\n|" + "Wert|" * 30 + "\n",
    "| a |\n|---|\n| 1 | 2 | 3 zu viel |\n",
    "| a | b |\n|:--|--:|\n| <EP1> | `x|y` |\n",
    "```python title=\"a\"\nprint('<EP1>')\n```",
    "~~~ Anspruch 1 ~~~\nText\n~~~",
    "    eingerückt <EP1>\n",
    "# Titel <EP1>\n\n## C#\n\nText\n===\n",
    "1. a\n   - b\n     > c\n       1. d <EP1>\n",
    "* * *\n\n- [x] erledigt\n- [ ] offen\n",
    "a\\\nb",
    "> " * 60 + "tief",
    "- " * 60 + "tief",
    "a" * 5000,
]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("text", ODD, ids=lambda text: text[:20])
def test_nothing_is_missing(text: str, width: int) -> None:
    """At any width each character is there as often as it was written, but for Markdown's marks."""
    written, there = Counter(text), Counter(shown(text, width))
    missing = {
        character: count
        for character, count in written.items()
        if there[character] < count and character not in "\\`*_#|~-[]()!>+.=: \n"
    }
    assert missing == {}
    assert "…" not in there


@given(
    st.lists(
        st.sampled_from(
            [*"<>*_`~[]()!#|-+\\&;:.\n\n  ", "```", "| a |\n|---|\n", "1. ", "> ", "EP1", "ß", "期"]
        )
    ).map("".join),
    st.sampled_from(WIDTHS),
)
def test_any_markdown(text: str, width: int) -> None:
    """Whatever the Markdown, letters and digits are all there, and nothing is raised."""
    written, there = Counter(text), Counter(shown(text, width))
    assert all(there[each] >= written[each] for each in "EP1ßa期<&;")


@pytest.mark.parametrize(
    "piece",
    [*("*a ", "**a", "***a** b* ", "`a``b", "> a\n", "- a\n", "| a | b |\n|---|---|\n", "[a](")],
)
def test_huge(piece: str) -> None:
    """What is too long to be rendered in good time is shown as it is."""
    text = piece * (2**20 // len(piece))
    assert shown(text) == f"{text}\n"


def test_rendered() -> None:
    """What is plain Markdown is rendered: bold is bold, a table has columns, code its frame."""
    text = "# Titel\n\nEs läuft **eine** Frist ab.\n\n| Nr. | Frist |\n|---|---|\n| 1 | morgen |\n"
    screen = shown(text, colours=True)
    assert "**" not in screen
    assert "|" not in screen
    assert re.search(r"\x1b\[1m\s*eine\x1b\[0m", screen)
    assert re.search(r"1\s+morgen", re.sub(r"\x1b\[[0-9;]*m", "", screen))


@given(st.text(st.characters(max_codepoint=0x2030)) | st.from_regex(r"<http://[%0-9a-f]{1,12}>"))
def test_strip_controls(text: str) -> None:
    """Whatever the Markdown, only the renderer's own colours reach the terminal."""
    rest = re.sub(r"\x1b\[[0-9;]*m", "", shown(text, colours=True))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", rest)
