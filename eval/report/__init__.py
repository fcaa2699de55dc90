"""Evaluated runs as tables, curves, pictures and pages."""
