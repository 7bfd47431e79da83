# Mixed models of one response on the boundary, and tests, intervals and residuals of others, from lme4, lmerTest, car
# and glmmTMB.
#
# Usage: Rscript glmm_designs.R
# Writes glmm_<design>.csv (simulated data) and glmm_designs.json (results) to the current folder.

suppressPackageStartupMessages({
  library(lme4); library(lmerTest); library(glmmTMB); library(car); library(jsonlite)
})
tight <- lmerControl(optCtrl = list(xtol_abs = 1e-10, ftol_abs = 1e-12), check.conv.singular = "ignore")
gtight <- glmerControl(optimizer = "bobyqa", optCtrl = list(rhoend = 1e-9), check.conv.singular = "ignore")
random <- function(fit) {
  v <- as.data.frame(VarCorr(fit))
  v[is.na(v)] <- ""
  v
}
describe <- function(fit) {
  found <- coef(summary(fit))
  list(coefficients = data.frame(term = rownames(found), found, row.names = NULL, check.names = FALSE),
       varcorr = random(fit), loglik = as.numeric(logLik(fit)), aic = AIC(fit), bic = BIC(fit),
       singular = isSingular(fit, tol = 1e-4))
}
results <- list()

# 10 samples of 50 cells, Poisson, no variance between samples beyond that of the counts
set.seed(3)
cells <- data.frame(sample = rep(sprintf("S%02d", 1:10), each = 50), group = rep(c("a", "b"), each = 250))
cells$depth <- round(exp(rnorm(500, 0, 0.4)), 4)
cells$y <- rpois(500, cells$depth * 2 * ifelse(cells$group == "b", 1.3, 1))
fit <- glmer(y ~ group + offset(log(depth)) + (1 | sample), cells, poisson, control = gtight)
results$cells <- describe(fit)
results$cells$deviance_residuals <- as.numeric(residuals(fit, "deviance"))[1:20]
results$cells$pearson_residuals <- as.numeric(residuals(fit, "pearson"))[1:20]

# response to a drug in 6 strains, the stronger the lower the baseline: correlation -1
for (seed in 1:200) {
  set.seed(seed)
  strains <- data.frame(strain = rep(paste0("strain", 1:6), each = 16), drug = rep(c("vehicle", "drug"), 48))
  strains$drug <- factor(strains$drug, levels = c("vehicle", "drug"))
  b <- rnorm(6, 0, 2)[rep(1:6, each = 16)]
  strains$y <- round(10 + 3 * (strains$drug == "drug") + b - 0.8 * b * (strains$drug == "drug") + rnorm(96, 0, 1.5), 4)
  fit <- lmer(y ~ drug + (drug | strain), strains, control = tight)
  if (isSingular(fit) && random(fit)$sdcor[3] < -0.9999) break
}
results$strains <- describe(fit)
results$strains$anova <- data.frame(anova(fit), check.names = FALSE)

# a grouping factor with two levels
set.seed(5)
two <- data.frame(batch = rep(c("A", "B"), each = 20), x = round(rnorm(40), 4))
two$y <- round(1 + 0.5 * two$x + 1.5 * (two$batch == "B") + rnorm(40), 4)
results$two <- describe(lmer(y ~ x + (1 | batch), two, control = tight))

# two crossed factors and a covariate, unbalanced, in 14 groups: analysis of variance, contrasts, profiles
set.seed(8)
plots <- data.frame(plot = rep(paste0("p", 1:14), times = sample(5:12, 14, TRUE)))
n <- nrow(plots)
plots$soil <- sample(c("clay", "loam", "sand"), n, TRUE, c(0.5, 0.3, 0.2))
plots$light <- sample(c("full", "shade"), n, TRUE, c(0.6, 0.4))
plots$ph <- round(rnorm(n, 6, 0.7), 3)
effect <- with(plots, 1.2 * (soil == "loam") - 0.7 * (light == "shade") + 0.9 * (soil == "sand") * (light == "shade") +
                 0.4 * (ph - 6))
u <- rnorm(14, 0, 0.8)[as.integer(sub("p", "", plots$plot))]
slope <- rnorm(14, 0, 0.5)[as.integer(sub("p", "", plots$plot))]
plots$y <- round(5 + effect + u + slope * (plots$ph - 6) + rnorm(n), 4)
plots$count <- rnbinom(n, mu = exp(1 + effect / 2 + u / 2), size = 2)
fit <- lmer(y ~ soil * light + ph + (1 | plot), plots, control = tight)
results$plots <- describe(fit)
results$plots$anova3 <- data.frame(term = rownames(anova(fit)), anova(fit, type = 3), check.names = FALSE)
wald <- Anova(fit, type = 2)
results$plots$anova2 <- data.frame(term = rownames(wald), wald, check.names = FALSE)
L <- rbind(c(0, 1, -1, 0, 0, 0, 0), c(0, 0, 0, 0, 1, 0.5, 0.5))
results$plots$contest1 <- data.frame(contest(fit, L, joint = FALSE, confint = TRUE), check.names = FALSE)
results$plots$contest <- data.frame(contest(fit, L), check.names = FALSE)
ml <- lmer(y ~ soil * light + ph + (1 | plot), plots, REML = FALSE, control = tight)
profiled <- confint(ml, parm = "beta_", method = "profile", quiet = TRUE)
results$plots$profile <- data.frame(term = rownames(profiled), low = profiled[, 1], high = profiled[, 2])
results$plots$vif <- data.frame(term = rownames(vif(fit)), vif(fit), check.names = FALSE)
new <- expand.grid(soil = c("loam", "sand"), light = c("full", "shade"), ph = c(5, 7), plot = c("p3", "nowhere"))
results$plots$newdata <- data.frame(lapply(new, function(x) if (is.factor(x)) as.character(x) else x))
results$plots$predicted <- as.numeric(predict(fit, new, allow.new.levels = TRUE))
results$plots$predicted_population <- as.numeric(predict(fit, new, re.form = NA))
both <- lmer(y ~ soil * light + ph + (ph | plot) , plots, control = tight)
results$plots$slope <- describe(both)
results$plots$slope_coef <- data.frame(level = rownames(coef(both)$plot), coef(both)$plot, check.names = FALSE)
results$plots$slope_ranef <- {
  r <- as.data.frame(ranef(both))
  data.frame(lapply(r, function(x) if (is.factor(x)) as.character(x) else x))
}

# negative binomial: Wald tests, residuals, prediction with standard errors
nb <- glmmTMB(count ~ soil * light + ph + (1 | plot), plots, family = nbinom2)
wald <- Anova(nb, type = 2)
results$counts <- list(
  loglik = as.numeric(logLik(nb)), theta = sigma(nb), coefficients = {
    found <- coef(summary(nb))$cond
    data.frame(term = rownames(found), found, row.names = NULL, check.names = FALSE)
  },
  anova2 = data.frame(term = rownames(wald), wald, check.names = FALSE),
  pearson_residuals = as.numeric(residuals(nb, "pearson"))[1:20],
  response_residuals = as.numeric(residuals(nb, "response"))[1:20]
)
p <- predict(nb, new, type = "link", se.fit = TRUE, re.form = NA)
results$counts$population <- data.frame(fit = as.numeric(p$fit), se = as.numeric(p$se.fit))
results$counts$conditional <- as.numeric(predict(nb, subset(new, plot == "p3"), type = "response"))

for (name in c("cells", "strains", "two", "plots")) {
  write.csv(get(name), paste0("glmm_", name, ".csv"), row.names = FALSE, quote = FALSE)
}
results$versions <- sapply(c("lme4", "lmerTest", "glmmTMB", "car"), function(p) as.character(packageVersion(p)))
write_json(results, "glmm_designs.json", auto_unbox = TRUE, digits = 12, pretty = TRUE)
