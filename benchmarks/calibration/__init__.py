"""Do the p-values hold? Simulations with known truth and real data without effects, methods side by side.

In dependency order:

`scenarios`
    The cells of the design: what is simulated, how often.
`simulate`, `realdata`
    One data set: counts of cells, their donors and treatment, the truth; splits of real control cells.
`methods`, `bulk`, `rbulk`
    What is compared: mixed models and a test on cells; pseudobulk in Python; pseudobulk in R, one process per batch.
`store`
    Results of one method on one data set, a file each, so that a killed run goes on where it was.
`metrics`, `report`, `picture`
    Rates with Monte-Carlo errors clustered by data set; tables; the figure.
`run`
    The command: ``python -m benchmarks.calibration``.
`bias`, `composition`, `variances`
    Studies of their own: estimators at low counts; offsets when one programme takes 30% of the counts; how much donors
    differ in real cells.
"""
