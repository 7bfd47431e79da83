# edgeR's quasi-likelihood F test and DESeq2's Wald test on the pseudobulk data sets of a folder (see rbulk.py).
#
# Where library sizes are known they are given to both; otherwise edgeR normalises by TMM and DESeq2 by its median of
# ratios. Everything else is the packages' default, but for DESeq2's independent filtering, which is off: the genes to be
# tested are chosen before, the same for all methods.

folder <- commandArgs(trailingOnly = TRUE)[1]
tasks <- list.files(folder, pattern = "\\.task$", full.names = TRUE)

run_edgeR <- function(counts, samples, design, known) {
  y <- edgeR::DGEList(counts, lib.size = samples$size)
  if (!known) y <- edgeR::calcNormFactors(y)
  y <- edgeR::estimateDisp(y, design)
  fit <- edgeR::glmQLFit(y, design)
  test <- edgeR::glmQLFTest(fit, coef = ncol(design))
  data.frame(p = test$table$PValue, beta = fit$unshrunk.coefficients[, ncol(design)])
}

run_DESeq2 <- function(counts, samples, design, known) {
  d <- DESeq2::DESeqDataSetFromMatrix(counts, S4Vectors::DataFrame(samples), design)
  if (known) {
    DESeq2::sizeFactors(d) <- samples$size / exp(mean(log(samples$size)))
  }
  d <- DESeq2::DESeq(d, quiet = TRUE)
  r <- DESeq2::results(d, name = tail(DESeq2::resultsNames(d), 1), independentFiltering = FALSE)
  data.frame(p = r$pvalue, beta = r$log2FoldChange * log(2), se = r$lfcSE * log(2))
}

for (path in tasks) {
  base <- sub("\\.task$", "", path)
  words <- strsplit(readLines(path), " ")[[1]]
  samples <- read.csv(paste0(base, ".samples.csv"), colClasses = c("factor", "integer", "numeric"))
  values <- readBin(paste0(base, ".counts"), "integer", file.size(paste0(base, ".counts")) / 4, size = 4)
  counts <- matrix(values, ncol = nrow(samples), byrow = TRUE)
  rownames(counts) <- paste0("g", seq_len(nrow(counts)))
  colnames(counts) <- rownames(samples)
  design <- if (words[1] == "1") model.matrix(~ donor + treated, samples) else model.matrix(~ treated, samples)
  for (package in words[-(1:2)]) {
    start <- sum(proc.time()[1:2])
    result <- tryCatch(
      suppressWarnings(suppressMessages(
        get(paste0("run_", package))(counts, samples, design, words[2] == "1")
      )),
      error = function(e) { cat(package, "failed:", conditionMessage(e), "\n"); NULL }
    )
    if (is.null(result)) next
    cat(sum(proc.time()[1:2]) - start, file = paste0(base, ".", package, ".seconds"))
    write.csv(result, paste0(base, ".", package, ".csv"), row.names = FALSE)
  }
}
