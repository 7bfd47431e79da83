"""Errors as one line on stderr and exit code 1."""

from __future__ import annotations

import functools
import sys
import traceback
import warnings
from collections.abc import Callable

import click

from scglmm.inference.tasks import WorkersLostError

OURS = (ValueError, KeyError, TypeError, OSError, WorkersLostError)
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def one_line(error: BaseException) -> str:
    """Message of an error in one line.

    A formula with a caret under the place becomes "..., in 'formula' at character n".
    """
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = text.splitlines()
    caret = next((i for i, line in enumerate(lines) if line.strip() == "^" and i > 0), None)
    if caret is not None:
        formula, place = lines[caret - 1], len(lines[caret]) - len(lines[caret - 1]) + len(lines[caret - 1].strip())
        where = f"(character {place} of {formula.strip()!r})"
        lines = [*lines[: caret - 1], where, *lines[caret + 1 :]]
    if isinstance(error, MemoryError):
        return "Out of memory."
    message = ""
    for part in (" ".join(line.split()) for line in lines if line.strip()):
        stop = "" if not message else " " if message[-1] in ".,:;)" or part[0] == "(" else "; "
        message += stop + part
    if not isinstance(error, OURS) or not message:
        return f"Unexpected {type(error).__name__}: {message or 'no message'} (scglmm --traceback shows where)"
    return message


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command say what went wrong in one line, and exit with 1, or with 130 on Ctrl-C."""

    @click.pass_context
    @functools.wraps(command)
    def run(context: click.Context, /, *args: object, **kwargs: object) -> None:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                command(*args, **kwargs)
            except (click.ClickException, click.exceptions.Exit, click.Abort):
                raise
            except KeyboardInterrupt:
                folder = kwargs.get("checkpoint")
                more = "" if folder is None else f" The same command goes on from the checkpoint {str(folder)!r}."
                click.echo(f"Interrupted: no file was written.{more}", err=True)
                sys.exit(INTERRUPTED)
            except Exception as error:
                if (context.obj or {}).get("traceback"):
                    traceback.print_exc()
                click.echo(f"Error: {one_line(error)}", err=True)
                sys.exit(1)

    return run


def _show_warning(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
    if issubclass(category, UserWarning):
        click.echo(f"Warning: {' '.join(str(message).split())}", err=True)
