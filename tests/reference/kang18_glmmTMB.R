# Reference fits of glmmTMB on the Kang et al. (2018) B cells.
#
# Usage: Rscript kang18_glmmTMB.R FOLDER
# Reads FOLDER/kang18_cells.csv (made by kang18_export.py), writes FOLDER/kang18_glmmTMB.csv.

suppressPackageStartupMessages(library(glmmTMB))

random_effects <- c(
  intercept = "(1 | ind)",
  nested = "(1 | ind) + (1 | ind:stim)",
  slope = "(stim | ind)",
  crossed = "(1 | ind) + (1 | cluster)",
  cell_covariate = "z + (1 | ind)"
)
covariate_genes <- c("ISG15", "CD74", "ERH", "WDR61")

# An optimiser for glmmTMB that is slow and exact: nlminb from several starting values of the covariance
# parameters (log standard deviations, for a slope then the parameter r of the correlation r / sqrt(1 + r^2)),
# from the best of them nlminb with a tight tolerance and BFGS, and Newton steps to bring the gradient to
# zero. A gain in log-likelihood below `same` does not count: where a variance is zero its logarithm runs off
# to minus infinity for gains of that size, until the Hessian is singular and the standard errors are lost.
same <- 1e-6
optimise <- function(par, fn, gr, control) {
  covariance <- which(names(par) == "theta")
  search <- function(start, ..., free = seq_along(start)) {
    full <- function(x) replace(start, free, x)
    fit <- suppressWarnings(nlminb(start[free], function(x) fn(full(x)), function(x) gr(full(x))[free],
                                   control = list(iter.max = 1e4, eval.max = 1e4, ...)))
    list(par = full(fit$par), objective = fit$objective, convergence = fit$convergence,
         message = fit$message, optimizer = "nlminb")
  }
  patterns <- list(0, -2, c(-1, -3), c(-3, -1), c(-2, -2, 2), c(-2, -2, -30), c(-2, -2, 30))
  starts <- unique(lapply(patterns, function(p) replace(par, covariance, rep_len(p, length(covariance)))))
  fits <- lapply(starts, function(start) tryCatch(search(start), error = function(e) list(objective = Inf)))
  objectives <- vapply(fits, function(fit) fit$objective, 0)
  best <- fits[[which(objectives < min(objectives, na.rm = TRUE) + same)[1]]]

  # Then tight searches, which from an optimum end with "singular convergence": the code of the first is kept.
  refine <- function(best, ...) {
    fit <- tryCatch(search(..., rel.tol = 1e-14), error = function(e) list(objective = Inf))
    if (isTRUE(fit$objective < best$objective - same)) best[c("par", "objective")] <- fit[c("par", "objective")]
    best
  }
  # A correlation of one is at infinity too: go there in steps, as far as it pays.
  if (length(covariance) == 3) {
    for (r in c(30, -30, 100, -100, 300, -300, 1000, -1000)) {
      best <- refine(best, replace(best$par, covariance[3], r), free = -covariance[3])
    }
  }
  best <- refine(best, best$par)
  bfgs <- optim(best$par, fn, gr, method = "BFGS", control = list(maxit = 1000, reltol = 1e-16))
  if (bfgs$value < best$objective - same) {
    best <- list(par = bfgs$par, objective = bfgs$value, convergence = bfgs$convergence,
                 message = bfgs$message, optimizer = "BFGS")
  }

  # Along a parameter that runs off to infinity there is no curvature: no step is taken in such a direction.
  for (i in 1:20) {
    gradient <- as.vector(gr(best$par))
    hessian <- eigen(optimHess(best$par, fn, gr), symmetric = TRUE)
    curved <- hessian$values > 1e-5
    directions <- hessian$vectors[, curved, drop = FALSE]
    proposal <- best$par - directions %*% (crossprod(directions, gradient) / hessian$values[curved])
    proposal <- setNames(as.vector(proposal), names(par))
    if (!isTRUE(fn(proposal) < best$objective + same)) break
    if (max(abs(gr(proposal))) >= max(abs(gradient))) break
    best$par <- proposal
  }

  # glmmTMB reads the estimates from the best point TMB has seen, so make that the point found here.
  environment(fn)$value.best <- Inf
  best$objective <- as.vector(fn(best$par))
  best$evaluations <- NA
  best
}

fit_one <- function(cells, gene, model, reml) {
  cells$y <- cells[[gene]]
  formula <- paste("y ~ offset(log(total)) + stim +", random_effects[[model]])
  warnings <- character()
  fit <- withCallingHandlers(
    glmmTMB(as.formula(formula), data = cells, family = nbinom2, REML = reml,
            control = glmmTMBControl(optimizer = optimise, optCtrl = list())),
    warning = function(w) {
      warnings <<- c(warnings, trimws(gsub("\\s+", " ", conditionMessage(w))))
      invokeRestart("muffleWarning")
    }
  )
  beta <- fixef(fit)$cond
  # Where the Hessian is singular glmmTMB has no standard errors: NaN or an error from solve().
  se <- tryCatch(suppressWarnings(sqrt(diag(vcov(fit)$cond))), error = function(e) rep(NaN, length(beta)))
  names(se) <- names(beta)
  covariances <- VarCorr(fit)$cond
  variance <- function(group, row, column = row) {
    block <- covariances[[group]]
    if (is.null(block) || !all(c(row, column) %in% rownames(block))) NA else block[row, column]
  }
  data.frame(
    gene = gene, model = model, formula = formula, REML = reml, n_expressing = sum(cells$y > 0),
    beta_Intercept = beta[["(Intercept)"]], beta_stim = beta[["stimstim"]], beta_z = beta["z"],
    se_Intercept = se[["(Intercept)"]], se_stim = se[["stimstim"]], se_z = se["z"],
    theta = sigma(fit),
    var_ind = variance("ind", "(Intercept)"),
    var_ind_stim = variance("ind:stim", "(Intercept)"),
    var_cluster = variance("cluster", "(Intercept)"),
    var_slope = variance("ind", "stimstim"),
    cov_slope = variance("ind", "(Intercept)", "stimstim"),
    logLik = -fit$fit$objective,
    convergence = fit$fit$convergence, pdHess = fit$sdr$pdHess,
    max_gradient = max(abs(fit$sdr$gradient.fixed)),
    optimizer = fit$fit$optimizer,
    warnings = paste(unique(warnings), collapse = "; "),
    row.names = NULL
  )
}

folder <- commandArgs(trailingOnly = TRUE)
if (length(folder) != 1) stop("usage: Rscript kang18_glmmTMB.R FOLDER")
cells <- read.csv(file.path(folder, "kang18_cells.csv"), check.names = FALSE)
genes <- setdiff(names(cells), c("cell", "ind", "stim", "cluster", "total", "z"))
cells$ind <- factor(cells$ind)
cells$cluster <- factor(cells$cluster)
cells$stim <- factor(cells$stim, levels = c("ctrl", "stim"))

fits <- expand.grid(reml = c(FALSE, TRUE), model = names(random_effects), gene = genes, stringsAsFactors = FALSE)
fits <- fits[fits$model != "cell_covariate" | fits$gene %in% covariate_genes, ]
rows <- Map(function(gene, model, reml) fit_one(cells, gene, model, reml), fits$gene, fits$model, fits$reml)
table <- do.call(rbind, unname(rows))

digits <- function(x) ifelse(is.na(x) & !is.nan(x), "", sprintf("%.17g", x))
numeric <- vapply(table, is.double, TRUE)
table[numeric] <- lapply(table[numeric], digits)
write.csv(table, file.path(folder, "kang18_glmmTMB.csv"), row.names = FALSE,
          quote = match(c("formula", "warnings"), names(table)))
