"""Negative binomial mixed models for AnnData."""
