"""Writes and reads what a run's folder holds."""
