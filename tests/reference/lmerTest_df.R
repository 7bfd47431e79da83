# Satterthwaite's degrees of freedom of lmerTest where a count is nearly Gaussian.
#
# Usage: Rscript lmerTest_df.R
# Writes lmerTest_cells.csv (the cells) and lmerTest_df.csv (the results) to the current folder.
#
# Counts of about 20,000 with a coefficient of variation of 5%: their logarithm is Gaussian with constant variance for
# all practical purposes, and so is the negative binomial model with a log link. Donors have unequal numbers of cells.

suppressPackageStartupMessages(library(lmerTest))
set.seed(11)
donor <- rep(1:9, times = c(4, 25, 8, 12, 30, 6, 15, 20, 10))
group <- as.integer(donor > 4)
x <- rnorm(length(donor))
u <- rnorm(9, 0, 0.04)[donor]
slope <- rnorm(9, 0, 0.03)[donor]
cells <- data.frame(donor = sprintf("D%d", donor), group, x = round(x, 6))
cells$y <- round(exp(10 + 0.03 * group + 0.02 * x + u + slope * x + rnorm(length(donor), 0, 0.05)))

models <- c(intercept = "(1 | donor)", slope = "(x | donor)", uncorrelated = "(x || donor)")
rows <- lapply(names(models), function(model) {
  fit <- lmer(as.formula(paste("log(y) ~ group + x +", models[[model]])), data = cells,
              control = lmerControl(optCtrl = list(xtol_abs = 1e-10, ftol_abs = 1e-12)))
  found <- coef(summary(fit))
  data.frame(model = model, coefficient = rownames(found), estimate = found[, "Estimate"],
             se = found[, "Std. Error"], df = found[, "df"], row.names = NULL)
})
write.csv(cells, "lmerTest_cells.csv", row.names = FALSE, quote = FALSE)
write.csv(do.call(rbind, rows), "lmerTest_df.csv", row.names = FALSE, quote = FALSE)
