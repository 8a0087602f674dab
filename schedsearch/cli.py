"""The command line: its verbs, how much it says, and how it ends.

Verbs import what they need when they run, so that ``--help`` stays fast. All they do can also be called from Python.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Annotated

import typer

from schedsearch import __version__, _terminal
from schedsearch._terminal import Talk
from schedsearch.cli_examples import epilog
from schedsearch.cli_formats import calibrate, sensitivity
from schedsearch.cli_measure import bench, compare, correct, evaluate, profile
from schedsearch.cli_options import EXIT_INTERRUPTED
from schedsearch.cli_read import metrics, models, show, validate
from schedsearch.cli_report import report
from schedsearch.cli_search import EXIT_TERMINATED, generate, optimize, resume_command
from schedsearch.errors import NotReachedError, SchedSearchError, UsageError

__all__ = ["EXIT_CODES", "app", "main", "resume_command"]

EXIT_ERROR, EXIT_NOT_REACHED = 2, 3

EXIT_CODES: Mapping[int, str] = {
    0: "done",
    1: "an unexpected error, which is a bug and prints its traceback; or whoever read the output closed it",
    EXIT_ERROR: "an option, a file, a study or a model that cannot be used as given, or a measurement that fails",
    EXIT_NOT_REACHED: "it ran, but nothing reaches what was asked for, such as the budget",
    EXIT_INTERRUPTED: "stopped by Ctrl-C; what was measured is kept",
    EXIT_TERMINATED: "stopped by SIGTERM; what was measured is kept",
}
"""How the program ends; the help and ``docs/command-line.md`` say the same."""

TALK: Mapping[str, Talk] = {
    "-q": Talk.QUIET,
    "--quiet": Talk.QUIET,
    "-v": Talk.VERBOSE,
    "--verbose": Talk.VERBOSE,
}
"""Options of the program that may also stand behind the verb."""

app = typer.Typer(
    name="schedsearch",
    help="Search schedules that make a diffusion model faster on this machine, and use them.",
    epilog="\n".join(["", "Exit codes:", *(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())]),
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # an unexpected error is a bug, and a plain traceback is its best report
    rich_markup_mode="rich",
)


def _add(verb: Callable[..., None]) -> None:
    app.command(epilog=epilog(verb.__name__))(verb)


_VERBS: tuple[Callable[..., None], ...] = (
    optimize, generate, show, validate, models, metrics,
    evaluate, compare, correct, profile, sensitivity, calibrate, report,
)  # fmt: skip
for _verb in _VERBS:
    _add(_verb)
app.add_typer(bench)


def main() -> None:
    """Runs the command line; an error meant for the user is one paragraph on stderr and the code of `EXIT_CODES`."""
    words = hoisted(sys.argv[1:])
    try:
        app(words, prog_name="schedsearch")
    except SchedSearchError as error:
        sys.stdout.flush()
        if {TALK[word] for word in takewhile(TALK.__contains__, words)} == {Talk.VERBOSE}:
            traceback.print_exc()
        typer.echo(f"error: {error}", err=True)
        sys.exit(EXIT_NOT_REACHED if isinstance(error, NotReachedError) else EXIT_ERROR)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def hoisted(words: Sequence[str]) -> list[str]:
    """Return the words with ``--quiet`` and ``--verbose`` in front, where they are options of the program.

    >>> hoisted(["show", "plan.json", "-q"])
    ['-q', 'show', 'plan.json']
    """
    end = words.index("--") if "--" in words else len(words)
    found = [word for word in words[:end] if word in TALK]
    return [*found, *(word for word in words[:end] if word not in TALK), *words[end:]]


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - the option's callback is called by position
    if wanted:
        typer.echo(f"schedsearch {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    context: typer.Context,
    *,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="Say only what was asked for: no progress, remarks and tables on the way."),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Say every measurement, the time of every stage, and where errors arose."),
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Search schedules that make a diffusion model faster on this machine, and use them."""
    if quiet and verbose:
        raise UsageError("found both --quiet and --verbose, expected at most one. Leave one out.")
    if quiet or verbose:
        context.call_on_close(_terminal.set_talk(Talk.QUIET if quiet else Talk.VERBOSE))


if __name__ == "__main__":
    main()
