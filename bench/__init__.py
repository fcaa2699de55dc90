"""The cost of a step: counted on any machine (count), measured on a GPU (gpu), at start (start).

`race` compares it with other packages.
"""

import os

os.environ.setdefault("JAX_SOFTMAX_CUSTOM_JVP", "true")  # as main.py does, before JAX is imported
