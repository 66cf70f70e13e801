"""``opd-probe``: the application, and how errors, warnings and interrupts reach the user.

Only light modules are imported here, so that ``--help`` is immediate; each command imports what it runs.
"""

from __future__ import annotations

import errno
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import closing, suppress
from importlib.metadata import version
from typing import Annotated, Any

import typer

from opd_probe.cli import (
    align,
    ckpts,
    coldstart,
    compare,
    doctor,
    figures,
    ingest,
    lab,
    losses,
    mass,
    overlap,
    prompts,
    report,
    rollout,
    show,
    tokens,
    verify,
)
from opd_probe.cli.arguments import spread
from opd_probe.cli.help import App, Group
from opd_probe.cli.printing import careful_stdout
from opd_probe.cli.repeats import Repeats
from opd_probe.cli.session import progress
from opd_probe.cli.signals import stopped_by_signals
from opd_probe.errors import OpdProbeError, OpdProbeWarning, is_panic
from opd_probe.imports import let_imports_last

_STRAY = re.compile(r"unexpected extra argument(?:s|\(s\))? \((.*)\)")
"""What click says of words that no option takes."""

INTERRUPTED = 130
BAD_INPUT = 2

_REFUSED = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE,
    errno.EIO,
)  # fmt: skip
"""What the system refuses wherever it is asked, such as a library that cannot write its cache."""

app = App(
    name="opd-probe",
    cls=Group,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Why is my on-policy distillation working, or not? Overlap, mass and alignment at student-visited states.",
)


def _print_version(asked: bool) -> None:
    if asked:
        print(version("opd-probe"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


for module in (
    overlap,
    mass,
    align,
    figures,
    report,
    compare,
    tokens,
    losses,
    rollout,
    ckpts,
    ingest,
    coldstart,
    prompts,
    doctor,
    show,
    verify,
    lab,
):
    module.register(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for bad input, 130 when interrupted.

    What ends a process in the ordinary way, SIGTERM and SIGHUP, interrupts like Ctrl-C, with exit code 143 or 129.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if argv is None:
        let_imports_last()
    received: list[int] = []
    try:
        return _run(words, received)
    except KeyboardInterrupt:  # while it begins or ends, or while something else is said
        return _interrupted(received)


def _run(words: Sequence[str], received: list[int]) -> int:
    with warnings.catch_warnings(), stopped_by_signals(received):
        try:
            with closing(_show_warnings_as_lines()), careful_stdout():
                code = typer.main.get_command(app).main(spread(words), prog_name="opd-probe", standalone_mode=False)
            if code == INTERRUPTED:  # typer keeps the interrupt to itself and hands on this code
                return _interrupted(received)
            return code if isinstance(code, int) else 0
        except OpdProbeError as error:
            return _fail(str(error))
        except OSError as error:
            if error.errno == errno.ENOENT and error.filename is None:  # of the system's word for where we are
                return _fail("the working directory is no longer there; change to one that is")
            if error.errno == errno.ENAMETOOLONG:
                return _fail(f"{error.filename}: no such path; the name is too long for one")
            if error.errno not in _REFUSED:
                raise
            return _fail(f"{error.filename or 'a file'}: cannot be written or read ({error.strerror})")
        except _usage_error() as error:
            return _usage(error)
        except (KeyboardInterrupt, typer.Abort):
            return _interrupted(received)
        except BaseException as error:
            if not is_panic(error):
                raise
            return _fail(f"a tokenizer or a file among what was given stops the library that reads it ({error})")
        finally:
            progress.close()


def _interrupted(received: Sequence[int]) -> int:
    with suppress(OSError):  # the terminal may be what has gone
        progress.close()
        how = f" by {signal.Signals(received[0]).name}" if received else ""
        progress.say(f"interrupted{how}; finished traces are kept, run the same command to resume")
    return 128 + received[0] if received else INTERRUPTED


def _usage_error() -> Any:
    """Click's base of usage errors, whether typer brings its own click or uses the installed one."""
    return typer.BadParameter.__mro__[2]


def _usage(error: Any) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        return BAD_INPUT  # the help has been printed
    where = context.command_path if context is not None else "opd-probe"
    options = {name for one in (context.command.params if context is not None else ()) for name in one.opts}
    stray = _STRAY.search(error.format_message())
    if stray is not None and "--ckpts" in options:
        return _fail(
            f"{stray[1]}: which option is this for? Checkpoints and runs go after --ckpts, stored traces after "
            f"--traces: {where} --ckpts {stray[1]}"
        )
    return _fail(f"{error.format_message()} Try '{where} --help'.")


def _fail(message: str) -> int:
    progress.close()
    progress.say(f"error: {' '.join(message.split())}")
    return BAD_INPUT


def _show_warnings_as_lines() -> Repeats:
    """Ours as one line for each kind; those of libraries not at all unless Python was told to show them."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    warnings.filterwarnings("always", category=OpdProbeWarning)
    repeats = Repeats(progress.say)
    plain = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, OpdProbeWarning):
            repeats.show(" ".join(str(message).split()))
        else:
            plain(message, category, *place, **more)

    warnings.showwarning = show
    return repeats


if __name__ == "__main__":
    sys.exit(main())
