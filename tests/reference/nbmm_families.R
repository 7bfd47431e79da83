# Families, zero inflation and REML of scglmm.tl.nbmm against glmmTMB: simulated cells of 14 donors, and their fits.
# Rscript nbmm_families.R, in this directory. Writes nbmm_families_cells.csv and nbmm_families.csv.
suppressMessages(library(glmmTMB))
set.seed(20)
n_donors <- 14
n <- 40 * n_donors
cells <- data.frame(donor = sprintf("d%02d", rep(1:n_donors, each = 40)))
at <- as.integer(factor(cells$donor))
cells$Dx <- c("Control", "AD")[1 + at %% 2]
cells$stim <- ifelse(runif(n) < 0.5, "ctrl", "stim")
cells$libSize <- round(rlnorm(n, 8, 0.4))
effect <- function(sd) rnorm(n_donors, 0, sd)[at]
base <- log(cells$libSize) - 8 + 0.4 * (cells$Dx == "AD") - 0.3 * (cells$stim == "stim")
inflated <- function(y, p) ifelse(runif(n) < p, 0, y)
cells$pois <- rpois(n, exp(0.6 + base + effect(0.5)))
cells$nb <- rnbinom(n, size = 1.5, mu = exp(0.9 + base + effect(0.6)))
cells$zip <- inflated(rpois(n, exp(1.2 + base + effect(0.4))), ifelse(cells$stim == "stim", 0.45, 0.2))
cells$zinb <- inflated(rnbinom(n, size = 4, mu = exp(1.8 + base + effect(0.4))), ifelse(cells$stim == "stim", 0.4, 0.25))
write.csv(cells, "nbmm_families_cells.csv", row.names = FALSE, quote = FALSE)

cells$Dx <- relevel(factor(cells$Dx), "Control")
control <- glmmTMBControl(optCtrl = list(iter.max = 1e4, eval.max = 1e4, rel.tol = 1e-12, x.tol = 1e-10))
models <- expand.grid(family = c("poisson", "nbinom2"), zi = c("", "~ 1", "~ stim"), method = c("ml", "reml"),
                      gene = c("pois", "nb", "zip", "zinb"), stringsAsFactors = FALSE)
models <- subset(models, !(zi != "" & gene %in% c("pois", "nb")))
rows <- list()
for (i in seq_len(nrow(models))) {
  m <- models[i, ]
  formula <- as.formula(paste(m$gene, "~ offset(log(libSize)) + Dx + stim + (1 | donor)"))
  zi <- if (m$zi == "") ~0 else as.formula(m$zi)
  fit <- suppressWarnings(glmmTMB(formula, cells, family = if (m$family == "poisson") poisson() else nbinom2(),
                                  ziformula = zi, REML = m$method == "reml", control = control))
  if (!isTRUE(fit$sdr$pdHess)) next
  add <- function(name, estimate, se = NA) {
    rows[[length(rows) + 1]] <<- data.frame(m[c("gene", "family", "zi", "method")], name, estimate, se)
  }
  found <- summary(fit)$coefficients
  for (part in c("cond", "zi")) {
    table <- found[[part]]
    for (k in seq_len(NROW(table))) {
      name <- sub("DxAD", "Dx[T.AD]", sub("stimstim", "stim[T.stim]", rownames(table)[k], fixed = TRUE), fixed = TRUE)
      add(if (part == "zi") sprintf("zi[%s]", name) else name, table[k, 1], table[k, 2])
    }
  }
  add("var[donor]", VarCorr(fit)$cond$donor[1, 1])
  if (m$family == "nbinom2") add("theta", sigma(fit))
  add("loglik", as.numeric(logLik(fit)))
}
table <- do.call(rbind, rows)
table$estimate <- signif(table$estimate, 12)
table$se <- signif(table$se, 12)
write.csv(table, "nbmm_families.csv", row.names = FALSE)
