"""Targets of samplers: unnormalised densities by name, with what is known about them exactly."""
