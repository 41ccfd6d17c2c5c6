"""Latents in which one channel is the expression and three are the person; a model learns them in seconds."""

from __future__ import annotations

import numpy as np

G, E = 8, 2


def toy_batch(number):
    """Images that follow from reference and expression: the reference, with one channel as the first unit says.

    The reference has a number of its own in that channel, as a face has an expression of its own: it is to be ignored.
    """
    rng = np.random.default_rng(number)
    reference = np.broadcast_to(rng.standard_normal((G, 1, 1, 1, 4)), (G, 1, 8, 8, 4)).astype(np.float32)
    expression = np.zeros((G, E, 40), np.float32)
    expression[..., 0] = rng.permuted(np.tile([0.0, 1.0], (G, 1)), axis=1)
    target = np.repeat(reference, E, axis=1)
    target[..., 0] = (4 * expression[..., 0] - 2)[..., None, None]
    return {"reference": reference, "target": target, "expression": expression}


class Toys:
    def __init__(self):
        self.number = 0

    def __next__(self):
        self.number += 1
        return toy_batch(self.number)

    def get_state(self):
        return {"number": self.number}

    def set_state(self, state):
        self.number = state["number"]

    def close(self):
        pass
