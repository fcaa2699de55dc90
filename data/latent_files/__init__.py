"""Latents in files of other programs: what is read, how it is checked, and as which data set."""
