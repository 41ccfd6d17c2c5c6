"""The rig: where an identity's features are for a given expression, in head coordinates.

Every control point is a *multilinear* function of the action units: with the others held still, each unit moves it in
a straight line in proportion to its intensity. Where units meet (a lid that is both raised and closed, lips that are
both parted and pressed) their effects multiply, so no blend of intensities in [0, 1] can turn a lid or a lip inside
out. Movements are roughly 1.5 times those of a photographed face, because they must read in a 64-pixel image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genaffect_jax.avatars.canvas import Points
from genaffect_jax.avatars.identity import Identity
from genaffect_jax.expressions.action_units import INDEX

SIDES: tuple[tuple[str, float], ...] = (("L", 1.0), ("R", -1.0))  # the person's left is the right of the image

# Lips: position along the mouth (-1 the person's right corner, 1 the left one), and what each place does.
LIP = np.array([-1.0, -0.8, -0.52, -0.22, 0.0, 0.22, 0.52, 0.8, 1.0])
_LIP2 = LIP * LIP
_CORNER = 0.25 * np.abs(LIP) + 0.75 * _LIP2  # share of a corner's rise
_OPEN = np.array([0.0, 0.52, 0.85, 0.98, 1.0, 0.98, 0.85, 0.52, 0.0])  # shape of the gap between the lips
_UPPER_LIP = np.array([0.0, 0.42, 0.82, 1.0, 0.80, 1.0, 0.82, 0.42, 0.0])
_LOWER_LIP = np.array([0.0, 0.50, 0.86, 1.0, 1.0, 1.0, 0.86, 0.50, 0.0])
_SNARL = np.array([0.0, 0.5, 1.0, 0.86, 0.5, 0.0, 0.0, 0.0, 0.0])  # AU10 of the right side; mirrored for the left
_LOWER_PULL = np.array([0.0, 0.55, 1.0, 0.95, 0.85, 0.95, 1.0, 0.55, 0.0])  # AU16
BROW = -26.0  # head y of the average brow
REST_CORNER = -1.6  # rise of the mouth corners at rest: a friendly neutral
# Eyelids, from the inner to the outer corner.
LID = np.array([-1.0, -0.66, -0.28, 0.12, 0.5, 0.8, 1.0])
_UPPER_LID = np.array([0.0, 0.60, 0.93, 1.0, 0.86, 0.50, 0.0])
_LOWER_LID = np.array([0.0, 0.42, 0.80, 0.98, 0.94, 0.60, 0.0])
# Brows, from the inner to the outer end: share of each unit's movement.
_BROW = np.array([0.0, 0.25, 0.5, 0.76, 1.0])
_BROW_ARCH = np.array([-0.2, 0.5, 1.0, 0.95, -0.4])
_AU1 = np.array([1.0, 0.80, 0.42, 0.10, 0.0])
_AU2 = np.array([0.0, 0.22, 0.72, 1.0, 0.85])
_AU4 = np.array([1.0, 0.85, 0.55, 0.25, 0.08])
_AU9 = np.array([0.30, 0.16, 0.0, 0.0, 0.0])


@dataclass(frozen=True)
class Eye:
    """One eye: lids from inner to outer corner `(7, 2)`, the iris, and how far the lids are apart (0 closed)."""

    side: float
    upper: Points
    lower: Points
    fold: Points
    iris: tuple[float, float]
    iris_radius: float
    aperture: float


@dataclass(frozen=True)
class Mouth:
    """Lip chains from the image's left to its right `(9, 2)`: outer upper, inner upper, inner lower, outer lower."""

    outer_upper: Points
    inner_upper: Points
    inner_lower: Points
    outer_lower: Points
    upper_teeth: Points
    lower_teeth: Points
    tongue: tuple[float, float, float, float]
    """x and y of the hump of the tongue on the floor of the mouth, its half width and half height."""
    tongue_tip: float
    """y of the tip of a shown tongue (AU19)."""
    gap: float


@dataclass(frozen=True)
class Face:
    """All control points of a face, in head coordinates, and the action units `au` by channel name."""

    outline: Points
    brows: dict[str, Points]
    eyes: dict[str, Eye]
    nose_tip: tuple[float, float]
    nose_wings: dict[str, tuple[float, float]]
    nose_half_width: float
    mouth: Mouth
    jaw: float
    chin: float
    cheeks: dict[str, float]
    au: dict[str, float]


def _xy(x: np.ndarray, y: np.ndarray) -> Points:
    points = np.empty((len(x), 2))
    points[:, 0] = x
    points[:, 1] = y
    return points


def half_width(identity: Identity) -> float:
    """Half the width of the head at the temples, design units."""
    return 59.0 * identity.face_width


def solve(identity: Identity, expression: np.ndarray) -> Face:
    """The control points of `identity` showing `expression` (float32 `(WIDTH,)`, already validated)."""
    values = expression.tolist()
    au = {channel: values[i] for channel, i in INDEX.items()}
    # Jaw drop in design units; the two units share one joint, hence the product.
    jaw = 13.5 * au["AU26"] + 23.0 * au["AU27"] - 9.0 * au["AU26"] * au["AU27"]
    nose_length = identity.nose_length
    nose_half_width = 12.5 * identity.nose_width
    return Face(
        outline=_outline(identity, jaw, au["AU17"]),
        brows={side: _brow(identity, side, sign, au) for side, sign in SIDES},
        eyes={side: _eye(identity, side, sign, au) for side, sign in SIDES},
        nose_tip=(0.0, 21.0 + nose_length - 1.2 * (au["AU9L"] + au["AU9R"])),
        nose_wings={
            side: (
                sign * (nose_half_width + 1.6 * au[f"AU9{side}"]),
                22.0 + nose_length - 4.2 * au[f"AU9{side}"] - 1.4 * au[f"AU10{side}"],
            )
            for side, sign in SIDES
        },
        nose_half_width=nose_half_width,
        mouth=_mouth(identity, au, jaw),
        jaw=jaw,
        chin=76.0 + identity.chin_length + 0.78 * jaw - 3.0 * au["AU17"],
        cheeks={side: -5.0 * au[f"AU6{side}"] - 3.0 * au[f"AU12{side}"] for side, _ in SIDES},
        au=au,
    )


def _outline(identity: Identity, jaw: float, chin_raise: float) -> Points:
    """The head, a closed curve of 16 points from the top of the skull clockwise in the image."""
    wide = half_width(identity)
    low = wide * (0.5 + 0.5 * identity.jaw_width)
    full = identity.cheek_fullness
    drop = 0.78 * jaw - 3.0 * chin_raise
    narrow = 1.0 - 0.0022 * jaw
    chin = identity.chin_length
    right = (
        (0.58 * wide, -71.0),
        (0.91 * wide, -47.0),
        (1.0 * wide, -16.0),
        (0.985 * wide + 1.0 * full, 12.0),
        ((0.70 * low + 0.16 * wide * identity.jaw_width + 3.0 * full) * narrow, 42.0 + 0.30 * chin + 0.34 * drop),
        ((0.57 * low + 2.0 * full) * narrow, 62.0 + 0.7 * chin + 0.82 * drop),
        (15.5 * identity.chin_width * (0.55 + 0.45 * identity.jaw_width), 74.6 + chin + drop),
    )
    return np.array(
        [(0.0, -80.0), *right, (0.0, 76.5 + chin + drop), *((-x, y) for x, y in reversed(right))], np.float64
    )


def _brow(identity: Identity, side: str, sign: float, au: dict[str, float]) -> Points:
    """The centre line of a brow, 5 points from the inner to the outer end."""
    raise_inner, raise_outer, lower = au[f"AU1{side}"], au[f"AU2{side}"], au[f"AU4{side}"]
    start = 12.0 + 0.6 * identity.eye_spacing
    length = 34.0 * identity.brow_length
    # A raised inner brow resists the lowerer: together they tilt the brow instead of cancelling (sadness, fear).
    sink = 9.0 * lower * (1.0 - 0.7 * raise_inner)
    x = start + length * _BROW - 5.5 * lower * _AU4 - 1.2 * raise_inner * _AU1
    y = BROW - identity.brow_height - identity.brow_arch * _BROW_ARCH - identity.brow_tilt * (_BROW - 0.4)
    y = y - 9.5 * raise_inner * _AU1 - 9.5 * raise_outer * _AU2 + sink * _AU4 + 4.0 * au[f"AU9{side}"] * _AU9
    return _xy(sign * x, y)


def _eye(identity: Identity, side: str, sign: float, au: dict[str, float]) -> Eye:
    close, tighten, cheek, widen = (au[f"AU{n}{side}"] for n in (43, 7, 6, 5))
    half = 16.6 * identity.eye_size
    height = half * identity.eye_openness
    centre_x = 28.5 + identity.eye_spacing
    centre_y = -3.0 + identity.eye_height
    pitch = au["gaze_pitch"]
    # The upper lid rides on the eyeball, so looking down lowers it a little.
    open_top = (0.70 * height + 6.0 * widen) * (1.0 - 0.26 * tighten) * (1.0 - 0.12 * cheek) + 1.6 * pitch
    open_bottom = (0.50 * height + 0.8 * widen) * (1.0 - 0.62 * tighten) * (1.0 - 0.80 * cheek) - 0.6 * pitch
    open_top, open_bottom = max(open_top, 0.5), max(open_bottom, 0.0)
    shut = 0.42 * height * (1.0 - 1.25 * cheek)  # where the lids meet, below the eye's axis; above it in a smile
    bottom = open_bottom * (1.0 - close) + shut * close
    tilt = identity.eye_tilt * LID
    x = sign * (centre_x + half * LID)
    upper = _xy(x, centre_y - tilt - open_top * (1.0 - close) * _UPPER_LID + shut * close * _LOWER_LID)
    lower = _xy(x, centre_y - tilt + bottom * _LOWER_LID)
    fold_height = 0.70 * height + 5.2 + 2.6 * widen
    fold = _xy(sign * (centre_x + (half + 1.0) * LID), centre_y - tilt - fold_height * _UPPER_LID - 1.0)
    return Eye(
        side=sign,
        upper=upper,
        lower=lower,
        fold=fold,
        iris=(
            sign * (centre_x - 0.4) + 6.4 * au["gaze_yaw"],
            centre_y - 0.06 * height - 4.8 * pitch,
        ),
        iris_radius=9.2 * identity.iris_size,
        aperture=(open_top + open_bottom) * (1.0 - close),
    )


def _mouth(identity: Identity, au: dict[str, float], jaw: float) -> Mouth:
    part, drop, pucker, press, tight = au["AU25"], jaw, au["AU18"], au["AU24"], au["AU23"]
    left, right = LIP > 0.0, LIP < 0.0

    def sided(number: int) -> np.ndarray:
        """The unit's intensity at each place of the lips: its own side's, the mean in the middle."""
        a, b = au[f"AU{number}L"], au[f"AU{number}R"]
        return np.where(left, a, np.where(right, b, 0.5 * (a + b)))

    smile, dimple, frown, stretch = sided(12), sided(14), sided(15), sided(20)
    snarl = au["AU10R"] * _SNARL + au["AU10L"] * _SNARL[::-1]
    wrinkle = 0.5 * (au["AU9R"] * _SNARL + au["AU9L"] * _SNARL[::-1])
    both = 0.5 * (au["AU12L"] + au["AU12R"])
    raise_chin, show, lower_pull = au["AU17"], au["AU19"], au["AU16"]

    rest = 45.0 + identity.mouth_height
    half = 23.5 * identity.mouth_width
    half = half * (1.0 - 0.46 * pucker) * (1.0 - 0.10 * tight) * (1.0 - 0.006 * drop)
    x = LIP * (half + (9.0 * smile + 8.5 * stretch + 4.0 * dimple - 1.0 * frown) * (1.0 - 0.5 * pucker))
    corner = REST_CORNER - 12.5 * smile - 4.5 * dimple + 11.0 * frown + 2.0 * stretch + 0.36 * drop
    middle = rest + corner * _CORNER + (2.5 * both - 5.0 * raise_chin + 0.06 * drop) * (1.0 - _LIP2)

    seal = (1.0 - 0.72 * press) * (1.0 - 0.30 * tight)
    up = (1.6 * part + 0.16 * drop) * _OPEN * seal
    lift = (7.0 * snarl + 2.6 * wrinkle) * (1.0 - 0.4 * press)
    fall = ((4.6 + 2.4 * both) * part + 0.86 * drop + 5.5 * show) * _OPEN * seal
    pull = 7.0 * lower_pull * _LOWER_PULL * (1.0 - 0.5 * press)
    inner_upper = middle - up - lift
    inner_lower = middle + fall + pull - 0.72 * lift * (1.0 - part)

    thin = (1.0 - 0.72 * press) * (1.0 - 0.45 * tight) * (1.0 + 0.45 * pucker)
    upper_lip = 5.4 * identity.upper_lip * thin * (1.0 - 0.28 * smile) * (1.0 - 0.25 * stretch) * _UPPER_LIP
    lower_lip = 7.0 * identity.lower_lip * thin * (1.0 - 0.20 * smile) * (1.0 - 0.25 * stretch) * _LOWER_LIP
    lower_lip = lower_lip * (1.0 + 0.25 * raise_chin)

    skull_teeth = rest + 5.2 + 0.66 * (-12.5 * smile + 2.0 * stretch) * _CORNER + 1.2 * both
    jaw_teeth = middle + (fall - 0.5 * _OPEN)
    floor = float(inner_lower[4])
    return Mouth(
        outer_upper=_xy(x, inner_upper - upper_lip),
        inner_upper=_xy(x, inner_upper),
        inner_lower=_xy(x, inner_lower),
        outer_lower=_xy(x, inner_lower + lower_lip),
        upper_teeth=_xy(x, np.maximum(skull_teeth, inner_upper)),
        lower_teeth=_xy(x, np.minimum(jaw_teeth, inner_lower)),
        tongue=(0.0, floor + 1.0, 0.58 * half, 0.30 * drop + 2.0 * part),
        tongue_tip=floor + 19.0 * show,
        gap=float((inner_lower - inner_upper).max()),
    )
