"""Two small tables that courses on mixed models use."""

from __future__ import annotations

from contextlib import ExitStack
from importlib.resources import as_file, files

import pandas as pd

from ._psychad import _checkout


def sleepstudy() -> pd.DataFrame:
    """Load reaction times of 18 people over ten days of a study with three hours in bed a night.

    Belenky et al. 2003, *Patterns of performance degradation and restoration during sleep restriction and subsequent
    recovery*, J. Sleep Res. 12:1–12, doi 10.1046/j.1365-2869.2003.00337.x; the values are those of R's
    ``lme4::sleepstudy``. The first three days are before the restriction.

    Returns
    -------
    180 rows with `Reaction` (mean reaction time in milliseconds), `Days` (0 to 9) and `Subject` (category).

    Raises
    ------
    FileNotFoundError
        The file is neither in the package nor in the source checkout.

    Examples
    --------
    >>> import scglmm
    >>> scglmm.datasets.sleepstudy().shape
    (180, 3)
    """
    return _read("sleepstudy.csv", ["Subject"])


def arabidopsis() -> pd.DataFrame:
    """Load fruits of 625 plants of *Arabidopsis thaliana*, clipped or not, with little or much fertiliser.

    Banta, Stevens and Pigliucci 2010, *A comprehensive test of the 'limiting resources' framework applied to plant
    tolerance to apical meristem damage*, Oikos 119:359–369, doi 10.1111/j.1600-0706.2009.17726.x; the values are those
    of R's ``lme4::Arabidopsis``.

    Returns
    -------
    625 rows with `reg` (region: NL, SP or SW), `popu` (population, 9 levels), `gen` (genotype, 24 levels, each of one
    population), `rack` (of the greenhouse, 1 or 2), `nutrient` (1 or 8), `amd` (tip clipped or unclipped), `status`
    (how the seed germinated) and `total.fruits` (count).

    Raises
    ------
    FileNotFoundError
        The file is neither in the package nor in the source checkout.

    Examples
    --------
    >>> import scglmm
    >>> scglmm.datasets.arabidopsis().shape
    (625, 8)
    """
    return _read("arabidopsis.csv", ["reg", "popu", "gen", "amd", "status"])


def _read(name: str, factors: list[str]) -> pd.DataFrame:
    packaged = files(__package__) / name
    with ExitStack() as stack:
        path = stack.enter_context(as_file(packaged)) if packaged.is_file() else _checkout() / name
        if not path.is_file():
            msg = f"{name} is neither in the installed package nor at {path}. Install scglmm again."
            raise FileNotFoundError(msg)
        table = pd.read_csv(path).astype(dict.fromkeys(factors, "category"))
    for factor in factors:  # names, in the order of numbers where they are numbers
        table[factor] = table[factor].cat.rename_categories(str)
    return table
