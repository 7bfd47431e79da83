"""What is unwise about a design, said before the fit: what is wrong with this data set, and what to do.

A *warning* is something that makes p-values wrong or an effect impossible to show; a *note* is worth a look. Designs
that are fine give neither: a warning that is always there is not read. What is measured behind the rules:

* a treatment that varies within donors and whose effect differs between them, fitted with ``(1|donor)`` alone, rejects
  15% of true nulls at a nominal 5% with 8 donors (Barr et al. 2013, doi 10.1016/j.jml.2012.11.001, for the principle);
* with a log link, a level of a factor in which a gene has no counts has no estimate, and few cells often have none;
* a variance inflation of 10 is the usual mark of collinearity (Fox and Monette 1992, doi
  10.1080/01621459.1992.10475190, for terms with several columns). It is measured between the replicates of a term:
  donors for what does not vary within them.
"""

from __future__ import annotations

from .coding import coding, numbers
from .grouping import constant_slopes, dominant_level, few_levels, small_groups
from .layout import Layout
from .replicates import collinear, few_df, few_replicates, rare_levels
from .within import no_random_effect, shared_names, varies_within
from .wording import NOTE, WARNING, Advice

__all__ = ["NOTE", "WARNING", "Advice", "Layout", "advise"]


def advise(layout: Layout) -> list[Advice]:
    """Judge a design.

    Returns
    -------
    Warnings first, then notes.
    """
    checks = (
        no_random_effect,
        shared_names,
        varies_within,
        few_replicates,
        few_df,
        rare_levels,
        collinear,
        constant_slopes,
        few_levels,
        dominant_level,
        small_groups,
        numbers,
        coding,
    )
    found = [advice for check in checks for advice in check(layout)]
    return sorted(found, key=lambda advice: advice.severity != WARNING)
