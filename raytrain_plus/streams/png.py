"""Writes raw pixels as PNG, without loss: MDS and LitData store such pictures of Pillow."""

import struct
import zlib

_COLOR_TYPES = {"L": (0, 1), "RGB": (2, 3), "LA": (4, 2), "RGBA": (6, 4)}
"""Pillow's mode -> PNG's colour type, and bytes of a pixel."""


def png_of_raw(content: bytes) -> bytes:
    """Return a picture as PNG.

    Args:
        content: width, height and the length of the mode's name, as uint32; the mode's name; and
            the pixels, row by row.

    Raises:
        ValueError: it is cut short, or its pixels are of another kind than 8 bits of gray or RGB,
            with or without alpha.
    """
    width, height, length = struct.unpack("<III", content[:12])
    mode = content[12 : 12 + length].decode()
    pixels = content[12 + length :]
    if mode not in _COLOR_TYPES:
        raise ValueError(
            f"a picture of Pillow's mode {mode!r}; pictures of the modes {', '.join(_COLOR_TYPES)} "
            "are kept, as PNG"
        )
    color, size = _COLOR_TYPES[mode]
    if len(pixels) != width * height * size:
        raise ValueError(f"{len(pixels)} bytes for a picture of {width} x {height} in {mode}")
    row = width * size
    # Each row begins with its filter: 0 for none.
    lines = b"".join(b"\0" + pixels[at : at + row] for at in range(0, len(pixels), row))
    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    )
