"""Small ICC profiles, byte by byte as ICC.1:2001-04 writes them."""

import struct

from PIL import ImageCms

# Red, green and blue of two kinds of screens as XYZ, adapted to D50.
P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
D50 = (0.9642, 1.0, 0.8249)


def display_p3() -> bytes:
    """The colours of phones' screens, with a gamma of 2.2."""
    colours = zip((b"rXYZ", b"gXYZ", b"bXYZ"), P3, strict=True)
    tags = [(name, _xyz(colour)) for name, colour in colours]
    tags += [(name, _gamma(2.2)) for name in (b"rTRC", b"gTRC", b"bTRC")]
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def srgb() -> bytes:
    """SRGB's own profile as Little CMS makes it."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def grey(gamma: float) -> bytes:
    """Grey of some gamma."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", [(b"kTRC", _gamma(gamma))])


def cmyk() -> bytes:
    """Inks of which cyan alone prints as a dark blue, and any other mix as white or black."""
    lab = {(1, 0, 0, 0): (70, 128, 40), (0, 0, 0, 0): (255, 128, 128)}
    corners = [(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    table = b"".join(bytes(lab.get(corner, (0, 128, 128))) for corner in corners)
    ramp = bytes(range(256))
    matrix = b"".join(_fixed(float(i in (0, 4, 8))) for i in range(9))
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + matrix + ramp * 4 + table + ramp * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", [(b"A2B0", lut)])


def _profile(kind: bytes, space: bytes, linked: bytes, tags: list[tuple[bytes, bytes]]) -> bytes:
    name = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags = [(b"desc", name), (b"cprt", b"text\0\0\0\0none\0"), (b"wtpt", _xyz(D50)), *tags]
    index, body = struct.pack(">I", len(tags)), b""
    begin = 128 + 4 + 12 * len(tags)
    for tag, data in tags:
        index += tag + struct.pack(">II", begin + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4xI", begin + len(body), 0x02400000) + kind + space + linked
    head += bytes(12) + b"acsp" + bytes(28) + b"".join(map(_fixed, D50))
    return head.ljust(128, b"\0") + index + body


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(colour: tuple[float, float, float]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_fixed, colour))


def _gamma(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
