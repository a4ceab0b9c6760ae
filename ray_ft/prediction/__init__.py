"""Prediction of more samples than fit in memory."""
