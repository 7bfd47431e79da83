# Contrasts and joint F tests of lmerTest where a count is nearly Gaussian.
#
# Usage: Rscript lmerTest_joint.R
# Writes lmerTest_joint_cells.csv (the cells) and lmerTest_joint.csv (the results) to the current folder.
#
# Counts of about 20,000 with a coefficient of variation of 5%: their logarithm is Gaussian with constant variance for
# all practical purposes, and so is the negative binomial model with a log link. Donors have unequal numbers of cells,
# a factor of three levels differs between them, x within them.

suppressPackageStartupMessages(library(lmerTest))
set.seed(5)
sizes <- c(4, 25, 8, 12, 30, 6, 15, 20, 10, 9, 3, 14)
donor <- rep(seq_along(sizes), times = sizes)
group <- c("A", "B", "C")[c(1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3)][donor]
x <- rnorm(length(donor))
u <- rnorm(12, 0, 0.04)[donor]
slope <- rnorm(12, 0, 0.03)[donor]
cells <- data.frame(donor = sprintf("D%02d", donor), group, x = round(x, 6))
effect <- c(A = 0, B = 0.03, C = 0.05)[group]
cells$y <- round(exp(10 + effect + 0.02 * x + u + slope * x + rnorm(length(donor), 0, 0.05)))

models <- c(intercept = "(1 | donor)", slope = "(x | donor)", uncorrelated = "(x || donor)")
tests <- list(
  "C-B" = rbind(c(0, -1, 1, 0)),
  "mean" = rbind(c(0, 0.5, 0.5, 0)),
  "B+x" = rbind(c(0, 1, 0, 1)),
  group = rbind(c(0, 1, 0, 0), c(0, 0, 1, 0)),
  "group, differently" = rbind(c(0, 1, 0, 0), c(0, -1, 1, 0)),
  all = rbind(c(0, 1, 0, 0), c(0, 0, 1, 0), c(0, 0, 0, 1))
)
rows <- list()
for (model in names(models)) {
  fit <- lmer(as.formula(paste("log(y) ~ group + x +", models[[model]])), data = cells,
              control = lmerControl(optCtrl = list(xtol_abs = 1e-10, ftol_abs = 1e-12)))
  for (test in names(tests)) {
    L <- tests[[test]]
    found <- contest(fit, L, joint = TRUE)
    one <- if (nrow(L) == 1) contest(fit, L, joint = FALSE) else NULL
    rows[[length(rows) + 1]] <- data.frame(
      model = model, test = test, estimate = if (is.null(one)) NA else one[["Estimate"]],
      se = if (is.null(one)) NA else one[["Std. Error"]],
      statistic = found[["F value"]], df1 = found[["NumDF"]], df2 = found[["DenDF"]], p = found[["Pr(>F)"]]
    )
  }
}
write.csv(cells, "lmerTest_joint_cells.csv", row.names = FALSE, quote = FALSE)
write.csv(do.call(rbind, rows), "lmerTest_joint.csv", row.names = FALSE, na = "", quote = 2)
