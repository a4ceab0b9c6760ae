"""Fitting: candidates and their members."""
