"""Compression: cells become nodes, once per dataset, and the cost of a fit no longer depends on their number.

In dependency order:

`strata`
    Cells that share every row of the design are one stratum; only the offset differs inside it.
`nodes`
    Chebyshev nodes in the offset range of every stratum, as many as a tolerance needs.
`counts`
    Any matrix of counts as row chunks or as whole sparse arrays, checked for being counts.
`tables`
    One accumulation of counts onto nodes, and the histogram of each gene's counts.
"""
