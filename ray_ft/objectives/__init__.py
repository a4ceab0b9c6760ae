"""Objectives: what a task wants of its predictions."""
