from __future__ import annotations

import struct

import pytest


@pytest.fixture
def size_of():
    """Width and height of a PNG file, which must be whole."""

    def read(path):
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND\xaeB`\x82")
        return struct.unpack(">II", data[16:24])

    return read
