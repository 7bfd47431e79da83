# Models on the boundary, by lme4 and lmerTest: data and results go into edge_cases/.
# Rscript tests/reference/edge_cases.R
suppressPackageStartupMessages({library(lme4); library(lmerTest)})
folder <- file.path("tests", "reference", "edge_cases")
dir.create(folder, showWarnings = FALSE)

# Ten samples of fifty cells, treated and control, whose donors do not differ
set.seed(1)
cells <- expand.grid(cell = 1:50, sample = sprintf("s%02d", 1:10))
cells$treated <- as.integer(as.integer(cells$sample) > 5)
cells$counts <- rpois(500, exp(0.5 + 0.3 * cells$treated))
poisson <- glmer(counts ~ treated + (1 | sample), cells, family = "poisson")

# Drug by strain: the drug undoes what the strains differ in, so intercept and slope are correlated at -1
set.seed(3)
strains <- expand.grid(replicate = 1:4, drug = 0:1, strain = sprintf("m%02d", 1:8))
base <- rnorm(8, 0, 2)
strains$y <- with(strains, 10 + 1.5 * drug + base[as.integer(strain)] * (1 - 0.6 * drug)) + rnorm(64)
slope <- lmer(y ~ drug + (drug | strain), strains)

# A grouping factor with two levels
set.seed(4)
two <- data.frame(lab = rep(c("a", "b"), each = 20), x = rnorm(40))
two$y <- 2 + 0.5 * two$x + ifelse(two$lab == "a", -0.8, 0.8) + rnorm(40)
pair <- lmer(y ~ x + (1 | lab), two)

number <- function(x) paste0("[", paste(format(as.numeric(x), digits = 15, trim = TRUE), collapse = ", "), "]")
describe <- function(fit) {
  table <- coef(summary(fit))
  df <- if ("df" %in% colnames(table)) table[, "df"] else rep(NA, nrow(table))
  sprintf('{"loglik": %s, "beta": %s, "se": %s, "df": %s, "cov": %s, "sigma": %s, "singular": %s}',
          format(as.numeric(logLik(fit)), digits = 15), number(table[, "Estimate"]), number(table[, "Std. Error"]),
          if (anyNA(df)) "null" else number(df), number(VarCorr(fit)[[1]]), format(sigma(fit), digits = 15),
          tolower(isSingular(fit)))
}
write.csv(cells[, c("sample", "treated", "counts")], file.path(folder, "cells.csv"), row.names = FALSE, quote = FALSE)
write.csv(strains[, c("strain", "drug", "y")], file.path(folder, "strains.csv"), row.names = FALSE, quote = FALSE)
write.csv(two, file.path(folder, "two.csv"), row.names = FALSE, quote = FALSE)
writeLines(sprintf('{\n "cells": %s,\n "strains": %s,\n "two": %s,\n "lme4": "%s"\n}', describe(poisson), describe(slope),
                   describe(pair), as.character(packageVersion("lme4"))), file.path(folder, "results.json"))
