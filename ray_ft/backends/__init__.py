"""Backends: where candidates train."""
