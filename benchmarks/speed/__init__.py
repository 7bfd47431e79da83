"""Time, memory and likelihood of scglmm and other implementations of the model, on the same genes in one run.

In dependency order:

`problem`
    The genes, the design and the donors, as every tool is given them, through files.
`yardstick`
    The log-likelihood of the model at anybody's estimates, written independently of all of them.
`tools`
    How each tool in Python is called; `peers.R` for those in R.
`worker`
    One tool in a process of its own.
`report`
    Table and picture.
`run`
    The options, one tool after the other.
"""
