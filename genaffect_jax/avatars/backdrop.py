"""The background of the image: a soft gradient and a quiet motif. Nothing here depends on the expression."""

from __future__ import annotations

import math

import numpy as np

from genaffect_jax.avatars.canvas import DESIGN, Canvas, ellipse
from genaffect_jax.avatars.identity import Identity
from genaffect_jax.avatars.palette import BACKGROUND_COLOURS, mix


def draw_backdrop(canvas: Canvas, identity: Identity) -> None:
    colour = BACKGROUND_COLOURS[identity.background_colour]
    light = mix(colour, (255, 255, 255), 0.34)
    deep = mix(colour, (70, 40, 110), 0.14)
    canvas.backdrop(light, deep)
    pattern = identity.background
    if pattern == "disc":
        canvas.fill(ellipse(128.0, 122.0, 106.0, 106.0), mix(colour, (255, 255, 255), 0.55), 0.75)
    elif pattern == "dots":
        places = [
            (12.0 + 46.0 * column + 23.0 * (row % 2), 14.0 + 44.0 * row) for row in range(6) for column in range(6)
        ]
        # Those that the head always hides are left out.
        dots = [ellipse(x, y, 5.0, 5.0) for x, y in places if not (90.0 < x < 166.0 and y > 70.0)]
        canvas.fill(canvas.path(*dots), (255, 255, 255), 0.45)
    elif pattern == "waves":
        for i, alpha in enumerate((0.22, 0.28, 0.34)):
            y = 92.0 + 52.0 * i
            top = np.array(
                [(-10.0, y + 14.0), (40.0, y - 10.0), (100.0, y + 8.0), (170.0, y - 14.0), (266.0, y + 10.0)]
            )
            canvas.fill((top, np.array([(DESIGN + 10.0, DESIGN), (-10.0, DESIGN)])), deep, alpha * 0.7)
    elif pattern == "rays":
        rays = []
        for i in range(12):
            a, b = (math.pi * (2 * i + k) / 12.0 for k in (0.0, 1.0))
            far, near = (np.array([128.0 + 190.0 * math.cos(t), 128.0 + 190.0 * math.sin(t)]) for t in (a, b))
            rays.append((np.array([(128.0, 128.0), far]), np.array([near, (128.0, 128.0)])))
        canvas.fill(canvas.path(*rays), (255, 255, 255), 0.24)
