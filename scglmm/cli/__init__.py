"""The command ``scglmm``: the main job for shells and workflow managers.

Tables go to stdout, progress and messages to stderr. Exit codes: 0, done; 1, the data or the formula are refused or the
run failed, with one line that says why; 2, the command was not understood; 130, Ctrl-C.
"""

from __future__ import annotations

import signal
import sys

import click

import scglmm

from ._demo import demo
from ._design import design
from ._nbmm import nbmm


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(scglmm.__version__, prog_name="scglmm")
@click.option("--traceback", is_flag=True, help="Show where an error came from.")
@click.pass_context
def cli(context: click.Context, traceback: bool) -> None:
    """Negative binomial mixed models for single-cell data in AnnData."""
    context.obj = {"traceback": traceback}


for command in (nbmm, design, demo):
    cli.add_command(command)


def main() -> None:
    """Run the command line."""
    # as an exception, so that unfinished files are removed when a workflow manager ends the run
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    cli(prog_name="scglmm")
