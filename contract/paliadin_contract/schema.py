"""The callback's bodies as a JSON Schema, made from the types that decode them.

It says what a receiver must accept, so it permits fields and types that this version does not
know. `docs/callback.schema.json` is what `python -m paliadin_contract.schema` prints.

Source: https://json-schema.org/draft/2020-12/json-schema-core.
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from paliadin_contract.callback import Ping, TurnCompleted, TurnFailed

_TYPES = (TurnCompleted, TurnFailed, Ping)


def callback_schema() -> dict[str, Any]:
    """The schema, as a value that JSON can hold."""
    shapes, definitions = msgspec.json.schema_components(_TYPES, ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Callback",
        "description": "The body of a callback; docs/protocol.md says what each field means. "
        "Accept fields and types that are not described here: later senders may have them.",
        "type": "object",
        "properties": {"type": {"type": "string"}},
        "required": ["type"],
        "allOf": [
            {"if": {"properties": {"type": {"const": each.__struct_config__.tag}}}, "then": shape}
            for each, shape in zip(_TYPES, shapes, strict=True)
        ],
        "$defs": _portable(definitions),
    }


def _portable(value: Any) -> Any:  # noqa: ANN401 - whatever JSON can hold
    # A schema's patterns are JavaScript's, which has no \A and \Z; its ^ and $ mean the same.
    if isinstance(value, dict):
        portable = {name: _portable(each) for name, each in value.items()}
        if isinstance(pattern := portable.get("pattern"), str):
            portable["pattern"] = pattern.replace(r"\A", "^").replace(r"\Z", "$")
        return portable
    return [_portable(each) for each in value] if isinstance(value, list) else value


def main() -> None:
    """Print it."""
    schema = msgspec.json.format(msgspec.json.encode(callback_schema()))
    sys.stdout.buffer.write(schema + b"\n")


if __name__ == "__main__":
    main()
