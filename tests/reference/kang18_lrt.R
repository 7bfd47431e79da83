# Likelihood ratio tests of glmmTMB on the Kang et al. (2018) B cells.
#
# Usage: Rscript kang18_lrt.R FOLDER
# Reads FOLDER/kang18_cells.csv (made by kang18_export.py), writes FOLDER/kang18_lrt.csv.
#
# Maximum likelihood fits from several starting values of the covariance parameters, of which the best counts, and
# anova() of each pair of nested models: its chi-square, degrees of freedom and p-value, which know nothing of variances
# on the boundary.

suppressPackageStartupMessages(library(glmmTMB))

models <- c(
  nested = "stim + (1 | ind) + (1 | ind:stim)",
  nested_0 = "1 + (1 | ind) + (1 | ind:stim)",
  intercept = "stim + (1 | ind)",
  intercept_0 = "1 + (1 | ind)",
  none = "stim",
  slope = "stim + (stim | ind)",
  cluster = "stim + cluster + (1 | ind)"
)
pairs <- list(c("nested", "nested_0"), c("nested", "intercept"), c("nested", "intercept_0"), c("intercept", "none"),
              c("slope", "intercept"), c("cluster", "intercept"))

folder <- commandArgs(trailingOnly = TRUE)
if (length(folder) != 1) stop("usage: Rscript kang18_lrt.R FOLDER")
cells <- read.csv(file.path(folder, "kang18_cells.csv"), check.names = FALSE)
genes <- setdiff(names(cells), c("cell", "ind", "stim", "cluster", "total", "z"))
cells$ind <- factor(cells$ind)
cells$cluster <- factor(cells$cluster)
cells$stim <- factor(cells$stim, levels = c("ctrl", "stim"))

fit_one <- function(gene, model) {
  cells$y <- cells[[gene]]
  formula <- as.formula(paste("y ~ offset(log(total)) +", models[[model]]))
  best <- NULL
  for (start in c(0, -1, -3)) {
    fit <- suppressWarnings(glmmTMB(formula, data = cells, family = nbinom2, doFit = FALSE))
    theta <- rep(start, length(fit$parameters$theta))
    if (length(theta) == 3) theta[3] <- 0
    fit <- tryCatch(suppressWarnings(glmmTMB(formula, data = cells, family = nbinom2, start = list(theta = theta))),
                    error = function(e) NULL)
    if (is.null(fit)) next
    if (is.null(best) || isTRUE(fit$fit$objective < best$fit$objective)) best <- fit
    if (length(theta) == 0) break
  }
  best
}

rows <- list()
for (gene in genes) {
  fits <- sapply(names(models), function(model) fit_one(gene, model), simplify = FALSE)
  for (pair in pairs) {
    # anova() wants log-likelihoods, which are NA where glmmTMB doubts its Hessian
    loglik <- vapply(fits[pair], function(fit) -fit$fit$objective, 0)
    table <- anova(fits[[pair[1]]], fits[[pair[2]]])
    rows[[length(rows) + 1]] <- data.frame(
      gene = gene, full = pair[1], reduced = pair[2], logLik_full = loglik[[1]], logLik_reduced = loglik[[2]],
      chisq = table[2, "Chisq"], df = table[2, "Chi Df"], p = table[2, "Pr(>Chisq)"]
    )
  }
  message(gene)
}
table <- do.call(rbind, rows)
numeric <- vapply(table, is.double, TRUE)
table[numeric] <- lapply(table[numeric], function(x) ifelse(is.na(x), "", sprintf("%.17g", x)))
write.csv(table, file.path(folder, "kang18_lrt.csv"), row.names = FALSE, quote = FALSE)
