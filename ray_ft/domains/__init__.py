"""Domains: what is particular to a field of data."""
