"""Colour that a file states: by code points, gamma and chromaticities, or a profile.

Sources: ITU-T H.273 (code points), the PNG specification, third edition (chunks), and
ICC.1:2022 (profiles).
"""

import struct
from dataclasses import dataclass

import numpy as np

# Chromaticities x, y of red, green, blue and white: H.273, table 2.
_D65, _C = (0.3127, 0.329), (0.31, 0.316)
_Corners = tuple[tuple[float, float], ...]
_PRIMARIES: dict[int, _Corners] = {
    1: ((0.64, 0.33), (0.3, 0.6), (0.15, 0.06), _D65),
    4: ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), _C),
    5: ((0.64, 0.33), (0.29, 0.6), (0.15, 0.06), _D65),
    6: ((0.63, 0.34), (0.31, 0.595), (0.155, 0.07), _D65),
    7: ((0.63, 0.34), (0.31, 0.595), (0.155, 0.07), _D65),
    8: ((0.681, 0.319), (0.243, 0.692), (0.145, 0.049), _C),
    9: ((0.708, 0.292), (0.17, 0.797), (0.131, 0.046), _D65),
    11: ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), (0.314, 0.351)),
    12: ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), _D65),
    22: ((0.63, 0.34), (0.295, 0.605), (0.155, 0.077), _D65),
}
_PRIMARIES_NAMES = {1: "BT.709", 9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
_TRANSFER_NAMES = {1: "BT.709", 8: "linear", 13: "sRGB", 16: "PQ", 18: "HLG"}

# Curves from stored to linear values, as parameters of an ICC curve: g alone, or
# g, a, b, c, d for (a x + b)^g from d on, and c x below. H.273, table 3.
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def _camera_curve(alpha: float, start: float, slope: float) -> tuple[float, ...]:
    return (1 / 0.45, 1 / alpha, (alpha - 1) / alpha, 1 / slope, slope * start)


_BT709_CURVE = _camera_curve(1.09929682680944, 0.018053968510807, 4.5)
_CURVES: dict[int, tuple[float, ...]] = {
    **dict.fromkeys((1, 6, 11, 12, 14, 15), _BT709_CURVE),
    4: (2.2,),
    5: (2.8,),
    7: _camera_curve(1.111572195921731, 0.022821585529445, 4.0),
    8: (1.0,),
    13: _SRGB_CURVE,
}

UNSPECIFIED = 2
"""The code point for a property that is not stated, for primaries and transfer."""
SRGB = (1, 13)
"""Code points of sRGB: primaries and transfer."""

# Bradford's matrix, by which ICC profiles adapt to D50.
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_D50 = np.array([0.9642, 1.0, 0.8249])


@dataclass(frozen=True)
class StatedColour:
    """What a file states about its colours beside an ICC profile, or without one.

    `cicp` outranks a profile; the others are outranked by it.
    """

    cicp: tuple[int, int] | None = None
    """Code points of primaries and transfer characteristics, from H.273."""
    narrow: bool = False
    """Whether RGB values of 16 to 235, of 8 bits, are meant with `cicp`."""
    srgb: int | None = None
    """sRGB, with this rendering intent."""
    gamma: int | None = None
    """Exponent from linear to stored values, times 100,000, as PNG's gAMA."""
    chromaticities: tuple[int, ...] | None = None
    """x, y of white, red, green, blue, times 100,000, as PNG's cHRM."""
    mastering: bytes | None = None
    """The display it was graded on: PNG's mDCV."""
    light: bytes | None = None
    """Maximum and average light level: PNG's cLLI."""

    def describe(self) -> str:
        """The colours in words, for a message."""
        if self.cicp:
            primaries = _PRIMARIES_NAMES.get(self.cicp[0], f"primaries {self.cicp[0]}")
            transfer = _TRANSFER_NAMES.get(self.cicp[1], f"transfer {self.cicp[1]}")
            narrow = ", narrow range" if self.narrow else ""
            return f"the colour space ({primaries}, {transfer}{narrow})"
        if self.srgb is not None:
            return "the colour space (sRGB)"
        return "the colour space (gamma and chromaticities)"


def profile_of(colour: StatedColour, gray: bool) -> bytes | None:
    """An ICC profile that means exactly the same; None where there is none.

    What is not stated is taken to be that of sRGB, as programs do. PQ and HLG have no
    such profile, since their light exceeds that of white.

    Args:
        colour: as stated.
        gray: whether the profile is for gray or for RGB pixels.
    """
    primaries: _Corners = _PRIMARIES[1]
    curve: tuple[float, ...] = _SRGB_CURVE
    if colour.cicp:
        known_primaries = {**_PRIMARIES, UNSPECIFIED: primaries}
        known_curves = {**_CURVES, UNSPECIFIED: curve}
        if colour.cicp[0] not in known_primaries or colour.cicp[1] not in known_curves:
            return None
        if colour.narrow:
            return None
        primaries = known_primaries[colour.cicp[0]]
        curve = known_curves[colour.cicp[1]]
    elif colour.srgb is None:
        if colour.gamma is not None:
            if not 0 < colour.gamma < 10**7:
                return None
            curve = (100_000 / colour.gamma,)
        if colour.chromaticities is not None:
            pairs = np.array(colour.chromaticities).reshape(4, 2) / 100_000
            white, *others = ((x, y) for x, y in pairs.tolist())
            primaries = (*others, white)
    stored = _parametric(curve)
    if gray:
        return _profile(b"GRAY", {b"kTRC": stored})
    matrix = _to_d50(primaries)
    return None if matrix is None else _rgb_profile(matrix, stored)


def rgb_profile_of_gray(profile: bytes) -> bytes | None:
    """The profile for RGB pixels whose three values are the gray one.

    Returns:
        None unless the given profile describes gray by one curve.
    """
    tags = _tags(profile)
    if profile_space(profile) != b"GRAY" or b"kTRC" not in tags or b"A2B0" in tags:
        return None
    matrix = _to_d50(_PRIMARIES[1])
    assert matrix is not None
    return _rgb_profile(matrix, tags[b"kTRC"])


def profile_space(profile: bytes) -> bytes:
    """The kind of pixels a profile is for: b"RGB ", b"GRAY", b"CMYK" .."""
    return profile[16:20]


def code_points_in(profile: bytes) -> tuple[int, int] | None:
    """Code points of primaries and transfer that a profile names."""
    tag = _tags(profile).get(b"cicp", b"")
    return (tag[8], tag[9]) if len(tag) >= 12 else None


def _tags(profile: bytes) -> dict[bytes, bytes]:
    try:
        (count,) = struct.unpack_from(">I", profile, 128)
        entries = [
            struct.unpack_from(">4sII", profile, 132 + 12 * i)
            for i in range(min(count, 1000))
        ]
    except struct.error:
        return {}
    return {name: profile[start : start + size] for name, start, size in entries}


def _to_d50(primaries: _Corners) -> np.ndarray | None:
    """The matrix from linear RGB to XYZ under D50; None for impossible primaries."""
    if any(y <= 0 for _, y in primaries):
        return None
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
    rgb, white = columns[:, :3], columns[:, 3]
    if abs(np.linalg.det(rgb)) < 1e-6:
        return None
    matrix = rgb * np.linalg.solve(rgb, white)
    cones = np.diag(_BRADFORD @ _D50 / (_BRADFORD @ white))
    return np.linalg.inv(_BRADFORD) @ cones @ _BRADFORD @ matrix


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))


def _parametric(curve: tuple[float, ...]) -> bytes:
    kind = {1: 0, 5: 3}[len(curve)]
    return b"para" + bytes(4) + struct.pack(">HH", kind, 0) + _fixed(*curve)


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(*values.tolist())


def _text(text: str) -> bytes:
    encoded = text.encode("utf-16-be")
    head = struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(encoded), 28)
    return b"mluc" + bytes(4) + head + encoded


def _rgb_profile(matrix: np.ndarray, curve: bytes) -> bytes:
    colours = {
        b"rgb"[i : i + 1] + b"XYZ": _xyz(matrix[:, i]) for i in range(len(matrix))
    }
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    return _profile(b"RGB ", {**colours, **curves})


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile, version 4, of a display."""
    tags = {
        b"desc": _text("Colours as stated by the source"),
        b"cprt": _text("No copyright, use freely"),
        b"wtpt": _xyz(_D50),
        **tags,
    }
    start = 132 + 12 * len(tags)
    table, body, places = struct.pack(">I", len(tags)), b"", dict[bytes, int]()
    for name, value in tags.items():
        if value not in places:
            places[value] = start + len(body)
            body += value + bytes(-len(value) % 4)
        table += struct.pack(">4sII", name, places[value], len(value))
    head = struct.pack(
        ">I4sI4s4s4s12s4s4s6I12s4s",
        start + len(body),
        b"",
        0x04300000,
        b"mntr",
        space,
        b"XYZ ",
        bytes(12),
        b"acsp",
        *(b"", 0, 0, 0, 0, 0, 0),
        _fixed(*_D50.tolist()),
        b"",
    )
    return head + bytes(128 - len(head)) + table + body
