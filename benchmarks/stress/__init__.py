"""Ten thousand random models, and whether each fit ends where it says it does.

`draw`
    A random model: design, random effects, family, parameters up to the extremes, and its data.
`criterion`
    The Laplace criterion (or the integral itself) cell by cell, with numpy and scipy; nothing of the package.
`check`
    A fit against that criterion: value, gradient, curvature, boundaries, separation; and against scipy's optimiser.
`run`
    The study: resumable, in parallel, with its report.
"""
