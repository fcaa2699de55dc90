"""The cost of a step: counted on any machine (count), measured on a GPU (gpu), at start (start).

`race` compares it with other packages.
"""
