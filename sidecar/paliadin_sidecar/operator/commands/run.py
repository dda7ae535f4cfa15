"""`run`: the daemon in the foreground."""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import click

from paliadin_contract.trace import safe_trace
from paliadin_sidecar.audit.lines import Audit
from paliadin_sidecar.environment import merged_environment
from paliadin_sidecar.errors import BadSettings, StateError
from paliadin_sidecar.host import streams
from paliadin_sidecar.host.termination import Termination
from paliadin_sidecar.operator import session
from paliadin_sidecar.operator.instance import is_unit
from paliadin_sidecar.settings import Settings

#: The whole stop stays within 10 s.
_STOP_S = 9.0
#: What ends the daemon with a sentence. Anything else is a defect of ours, and a crash.
_EXPECTED = (BadSettings, StateError, KeyboardInterrupt, SystemExit)


@click.command()
@session.env_file_option
@click.option("--quarantine", is_flag=True, help="Move a damaged outbox aside and begin anew.")
def run(env_file: Path | None, *, quarantine: bool) -> None:
    """Run the daemon in the foreground. SIGTERM ends it, a second one ends it at once."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Python's own raises an error in whatever runs; in a callback, as imports have some, that
        # error is dropped, and with it the Ctrl-C. Nothing has begun that needs an end.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    import anyio  # noqa: PLC0415 - the help loads this module too

    from paliadin_sidecar import daemon  # noqa: PLC0415 - the help loads this module too

    termination: Termination | None = None
    try:
        with session.errors_end_the_command(env_file):
            environ = dict(os.environ)
            # systemd has read the unit's EnvironmentFile= already, and the default file may be
            # another instance's: what a unit leaves unset stays unset.
            if env_file or not is_unit():
                environ = merged_environment(os.environ, env_file)
            try:
                settings = Settings.from_environment(environ)
                termination = Termination(_STOP_S)
                serve = partial(daemon.run, quarantine=quarantine)
                anyio.run(serve, settings, sys.stdout, termination.on_signal)
            except BaseException as exc:  # noqa: BLE001 - its text may quote what no log may hold
                expected = _first_expected(exc)
                if expected is not None:
                    raise expected from None
                trace = safe_trace(exc)
                Audit(sys.stderr).line("service.crashed", time.time(), {"trace": trace})
                sys.exit(1)
            termination.done(0)
    except SystemExit as exc:
        if termination is not None:
            termination.done(exc.code if isinstance(exc.code, int) else 1)
        raise
    finally:
        # Else the interpreter fails at what an output that is gone did not take: exit code 120.
        streams.has_failed(sys.stdout)


def _first_expected(exc: BaseException) -> BaseException | None:
    # From inside the exceptions of the task groups.
    if isinstance(exc, BaseExceptionGroup):
        return next(filter(None, map(_first_expected, exc.exceptions)), None)
    return exc if isinstance(exc, _EXPECTED) else None
