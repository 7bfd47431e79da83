# One R package on the problem of a folder (benchmarks/speed/problem.py), one thread, gene by gene:
#   Rscript peers.R PACKAGE FOLDER [GENES]
# prints tab-separated lines, a gene's when it is done: gene, cpu, wall, loglik, sigma2, theta, memory, note, beta...
# Memory is the peak resident memory during the fit above that before it, in bytes (Linux).
arguments <- commandArgs(trailingOnly = TRUE)
package <- arguments[1]
folder <- arguments[2]
sizes <- scan(file.path(folder, "sizes.txt"), quiet = TRUE)
n <- sizes[1]; p <- sizes[2]; m <- sizes[3]
if (length(arguments) > 2) m <- min(m, as.integer(arguments[3]))
connection <- file(file.path(folder, "numbers.bin"), "rb")
X <- matrix(readBin(connection, "double", n * p, endian = "little"), n, p)
donor <- readBin(connection, "double", n, endian = "little")
offset <- readBin(connection, "double", n, endian = "little")
Y <- matrix(readBin(connection, "double", n * m, endian = "little"), n, m)
close(connection)

status <- function(name) {
  if (!file.exists("/proc/self/status")) return(NaN)
  1024 * as.numeric(gsub("[^0-9]", "", grep(name, readLines("/proc/self/status"), value = TRUE)))
}
measured <- function(expression) {
  gc()
  if (file.exists("/proc/self/clear_refs")) cat("5", file = "/proc/self/clear_refs")
  before <- status("^VmRSS")
  time <- system.time(value <- expression)
  list(value = value, time = time, memory = max(status("^VmHWM") - before, 0))
}
tell <- function(gene, run, share, loglik, sigma2, theta, note, beta) {
  numbers <- sprintf("%.17g", c(sum(run$time[1:2]) / share, run$time[[3]] / share, loglik, sigma2, theta, run$memory))
  cat("fit", gene, numbers, gsub("[\t\n]", " ", note), sprintf("%.17g", beta), sep = "\t"); cat("\n"); flush(stdout())
}

data <- data.frame(X[, -1, drop = FALSE], donor = factor(donor), o = offset)
names(data)[seq_len(p - 1)] <- paste0("x", seq_len(p - 1))
model <- reformulate(c(paste0("x", seq_len(p - 1)), "offset(o)", "(1|donor)"), response = "y")
suppressPackageStartupMessages(library(package, character.only = TRUE))
cat("version", as.character(packageVersion(package)), sep = "\t"); cat("\n")

if (package == "nebula") {
  # all genes in one call; theta is 1 / the overdispersion of cells
  counts <- Matrix::Matrix(t(Y), sparse = TRUE)
  rownames(counts) <- seq_len(m)
  run <- measured(nebula(
    counts, donor, pred = X, offset = exp(offset), model = "NBGMM", method = "LN",
    cpc = 0, mincp = 0, ncore = 1, verbose = FALSE
  ))
  fit <- run$value
  for (k in seq_len(nrow(fit$summary))) {
    beta <- as.numeric(fit$summary[k, seq_len(p)])
    over <- fit$overdispersion[k, ]
    note <- if (fit$convergence[k] == 1) "" else paste("convergence", fit$convergence[k])
    tell(as.integer(as.character(fit$summary$gene[k])), run, m, NaN, over$Subject, 1 / over$Cell, note, beta)
  }
} else {
  for (g in seq_len(m)) {
    data$y <- Y[, g]
    notes <- character()
    run <- measured(withCallingHandlers(
      {
        fit <- if (package == "glmmTMB") {
          glmmTMB(model, data, family = nbinom2, control = glmmTMBControl(parallel = 1))
        } else {
          glmer.nb(model, data)
        }
        summary(fit)  # standard errors and p-values
        fit
      },
      warning = function(w) {
        notes <<- c(notes, conditionMessage(w))
        invokeRestart("muffleWarning")
      }
    ))
    fit <- run$value
    if (package == "glmmTMB") {
      beta <- fixef(fit)$cond; sigma2 <- VarCorr(fit)$cond$donor[1]; theta <- sigma(fit)
    } else {
      beta <- fixef(fit); sigma2 <- VarCorr(fit)$donor[1]; theta <- getME(fit, "glmer.nb.theta")
    }
    tell(g, run, 1, as.numeric(logLik(fit)), sigma2, theta, paste(unique(notes), collapse = "; "), beta)
  }
}
