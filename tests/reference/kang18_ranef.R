# Conditional modes of random effects of glmmTMB on the Kang et al. (2018) B cells.
#
# Usage: Rscript kang18_ranef.R FOLDER
# Reads FOLDER/kang18_cells.csv (made by kang18_export.py), writes FOLDER/kang18_ranef.csv.

suppressPackageStartupMessages(library(glmmTMB))

models <- c(nested = "(1 | ind) + (1 | ind:stim)", slope = "(stim | ind)")
fits <- list(c("CD74", "nested"), c("ISG15", "slope"))

folder <- commandArgs(trailingOnly = TRUE)
cells <- read.csv(file.path(folder, "kang18_cells.csv"), check.names = FALSE)
cells$ind <- factor(cells$ind)
cells$stim <- factor(cells$stim, levels = c("ctrl", "stim"))

one <- function(gene, model) {
  cells$y <- cells[[gene]]
  formula <- as.formula(paste("y ~ offset(log(total)) + stim +", models[[model]]))
  control <- glmmTMBControl(optCtrl = list(iter.max = 1e4, eval.max = 1e4, rel.tol = 1e-14))
  # ML: with REML glmmTMB counts the fixed effects among the random ones
  # "singular convergence" is what nlminb says when it cannot improve on an optimum any more
  fit <- suppressWarnings(glmmTMB(formula, data = cells, family = nbinom2, control = control))
  stopifnot(max(abs(fit$sdr$gradient.fixed)) < 1e-2)
  modes <- as.data.frame(ranef(fit, condVar = FALSE))
  data.frame(gene = gene, model = model, group = modes$grpvar, level = modes$grp, column = as.character(modes$term),
             mode = sprintf("%.10g", modes$condval))
}
table <- do.call(rbind, lapply(fits, function(f) one(f[1], f[2])))
write.csv(table, file.path(folder, "kang18_ranef.csv"), row.names = FALSE, quote = FALSE)
