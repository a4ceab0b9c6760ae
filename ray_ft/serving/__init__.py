"""Serving: an ensemble behind HTTP."""
