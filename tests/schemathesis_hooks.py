"""What schemathesis sends for an image: real ones, and bytes that are none."""

from __future__ import annotations

import schemathesis
from hypothesis import strategies as st

from tests.conftest import jpeg

IMAGES = st.sampled_from([jpeg((200, 30, 90)), jpeg((0, 0, 0), (1, 1)), jpeg((9, 200, 9), (300, 7))])

schemathesis.openapi.format("binary", st.one_of(IMAGES, st.binary(max_size=64)))
for media_type in ("image/*", "image/jpeg", "application/octet-stream"):
    schemathesis.openapi.media_type(media_type, st.one_of(IMAGES, IMAGES, st.binary(max_size=64)))
