"""``scglmm demo``: the bundled data from counts to pictures."""

from __future__ import annotations

from pathlib import Path

import click

from ._errors import reports_errors


@click.command()
@click.argument("folder", default="figures", type=click.Path(path_type=Path))
@reports_errors
def demo(folder: Path) -> None:
    """Fit the bundled data; the top genes go to stdout, pictures into FOLDER ("figures" by default)."""
    from scglmm import demo as example

    example.main(str(folder))
