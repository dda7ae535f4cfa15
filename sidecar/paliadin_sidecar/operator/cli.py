"""The command `paliadin-sidecar`: its commands are loaded only when they are typed."""

from __future__ import annotations

# isort: off
import paliadin_sidecar.host.pid1  # noqa: F401 - imported for what it does, and before the others

# isort: on
import sys
from importlib import import_module
from typing import Any, cast

import click

from paliadin_sidecar.host import streams

#: Each command, and its module in `commands`.
_COMMANDS = {
    "check": "check",
    "erase": "erase",
    "export": "export",
    "log": "turns",
    "rehearse": "rehearse",
    "replay": "turns",
    "report": "report",
    "run": "run",
    "show": "turns",
    "status": "status",
    "top": "top",
    "turns": "turns",
}


class _Commands(click.Group):
    """The commands, on streams that may be closed, full, or of another encoding."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click names it - click's signature
        """The names, as the help shows them."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click names it
        """The command of this name, None where there is none."""
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"paliadin_sidecar.operator.commands.{_COMMANDS[cmd_name]}")
        return cast("click.Command", getattr(module, cmd_name))

    def main(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - click's own signature
        """Run the command that was typed, and end the process."""
        streams.prepare()
        try:
            return super().main(*args, **kwargs)
        except OSError as exc:
            if not streams.has_failed(sys.stdout):
                raise
            sys.exit(f"paliadin-sidecar: the output cannot be written: {exc.strerror}")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="paliadin")
def main() -> None:
    """Push completed turn files to paliad's callback."""


if __name__ == "__main__":
    main()
