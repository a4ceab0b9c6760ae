"""Runs: the folder of a run, its storage and its log."""
