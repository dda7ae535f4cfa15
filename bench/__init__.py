"""Measurements: `make bench`. Never installed."""
