"""Inference: from the engine's optimum to estimates, tests and variance fractions.

In dependency order:

`frame`
    The design on strata, scaled for the engine, and the way back to the user's units.
`separation`
    Coefficients whose estimate would be infinite, found before the fit.
`containment`, `wald`
    Degrees of freedom and tests of fixed effects, adjustment over genes.
`contrasts`, `lrt`, `ash`
    Contrasts and joint tests, likelihood ratio tests, shrunken effects.
`varpart`
    Variance fractions.
`advice`
    What is unwise about a design, before the fit.
`gene`, `genes`
    One gene; all genes, compressed and fitted block by block.
`compressed`, `effects`, `response`
    One vector of responses: to its strata and back, its random effects, its fit with all that one model shows.
"""
