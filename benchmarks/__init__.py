"""Benchmarks: each is `python -m benchmarks.NAME` from the repository's root, and ends with one line of JSON."""
