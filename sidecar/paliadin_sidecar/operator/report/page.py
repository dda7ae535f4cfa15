"""The page as HTML, which runs and loads nothing but what is in it."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from paliadin_sidecar.operator.language import Language, utc
from paliadin_sidecar.operator.report.view import Page, visible

#: A word of so many letters has room in a column.
_MAX_WORD = 20


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def render(page: Page, language: Language) -> str:
    """The page's HTML, in which every value is text whatever stands in it.

    Args:
        page: what is on it.
        language: of its texts.
    """
    style, script = _file("page.css"), _file("page.js")
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(_file),
        finalize=_shown,
    )
    environment.filters["utc"] = utc
    environment.tests["long"] = _is_long
    return environment.get_template("page.html.jinja").render(
        vars(page),
        language=language,
        text=language.text,
        # Nothing but these two may have an effect, and nothing may be loaded or sent anywhere.
        policy=(
            f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}; "
            "base-uri 'none'; form-action 'none'"
        ),
        style=Markup(style),  # noqa: S704 - our own files
        script=Markup(script),  # noqa: S704 - the same
    )


def _is_long(text: str) -> bool:
    # Whether one of its words would be wider than its column: that one may break anywhere.
    return any(len(word) > _MAX_WORD for word in re.split(r"[\s-]", text))


def _source(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _shown(value: object) -> object:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
