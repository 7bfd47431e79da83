"""Engine: mixed models on nodes, numba kernels on plain arrays, no Python objects inside.

In dependency order (symbols are defined in `structure`):

`layout`
    The arrays of one gene and of one model.
`nb2`, `histogram`, `counts`, `gaussian`, `families`
    Log-likelihood and derivatives of every stratum; families by integer code, plain NB2 by type.
`structure`, `ldl`
    Where every number of the sparse Hessian goes, worked out once; numeric factor, solve, selected inverse.
`penalised`, `mode`
    The penalised Hessian of random and fixed effects; Newton's method for their mode.
`laplace`, `boundary`
    Laplace ML and REML with gradient; the derivative at a zero variance.
`start`, `curvature`, `optimise`
    Starting values, second derivatives, a quasi-Newton climb.
`search`, `zero_variances`, `fit`
    State and moves of a search, those of the variances to and from 0, and the fit of one gene with its record.
`quadrature`, `refit`
    Adaptive Gauss-Hermite for one scalar random term, and maximum likelihood by it.
`posterior`
    Conditional covariance of the random effects, effective number of parameters.
`responses`
    One gene of the compressed tables, or one vector of responses, as the engine wants it.
"""
