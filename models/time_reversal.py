"""The parameters of a DiT whose time runs the other way: exact, in the parameters alone.

SiT, LightningDiT and the code of shortcut models count from noise (0) to data (1), and predict
x_0 - eps. Here time runs from data to noise, and the velocity is eps - x_0. If a network computes
v(x, t), the one that `reverse_time` returns computes -v(x, 1 - t).

With a_k = f_k T t for the frequency f_k and time_scale T, and c_k, s_k = cos, sin of f_k T,

    cos(f_k T (1 - t)) = c_k cos a_k + s_k sin a_k
    sin(f_k T (1 - t)) = s_k cos a_k - c_k sin a_k

so the first matrix of the time's embedder takes the sinusoids of t in place of those of 1 - t, if
its rows are combined in the same way. The sign goes into the last layer.
"""

import numpy as np

from fewstep.models.conditioning import frequencies
from fewstep.models.network import Params


def reverse_time(params: Params, time_scale: float) -> Params:
    """The parameters of the network (x, t) -> -v(x, 1 - t), for those of v. It is its own inverse.

    params: of a DiT without a second time, or with the step size, which is the same both ways.
    time_scale: its field; the result has the same.
    """
    conditioning, final = params["conditioning"], params["final"]
    time = conditioning["time_embedder"]
    hidden = {**time["hidden"], "kernel": reverse_rows(time["hidden"]["kernel"], time_scale)}
    output = {name: -np.asarray(leaf) for name, leaf in final["output"].items()}
    return {
        **params,
        "conditioning": {**conditioning, "time_embedder": {**time, "hidden": hidden}},
        "final": {**final, "output": output},
    }


def reverse_rows(kernel: np.ndarray, time_scale: float) -> np.ndarray:
    """The matrix [256, D] that maps the sinusoids of t as `kernel` maps those of 1 - t."""
    turn = time_scale * frequencies().astype(np.float64)[:, None]
    cosines, sines = np.split(np.asarray(kernel, np.float64), 2)
    rows = [
        np.cos(turn) * cosines + np.sin(turn) * sines,
        np.sin(turn) * cosines - np.cos(turn) * sines,
    ]
    return np.concatenate(rows).astype(np.float32)
