"""Which decoded pictures a camera's process keeps."""

from __future__ import annotations

import av

from server.ingest.pictures import Pictures


def frame() -> av.VideoFrame:
    return av.VideoFrame(64, 32, "yuv420p")


def test_the_picture_of_the_last_result_is_kept_even_if_later_units_were_shown_before_it() -> None:
    pictures = Pictures()
    frames = {seq: frame() for seq in (6, 7, 5, 8)}  # in the order of display: unit 5 is a P frame behind B frames
    for seq, picture in frames.items():
        pictures.hold(seq, picture)
    for seq in (6, 7, 5):
        pictures.release(seq, completed=True)
        assert pictures.find(seq, completed=False) is frames[seq]
        assert pictures.find(None, completed=True) is frames[seq]
    assert pictures.find(6, completed=False) is None, "nothing more is kept than is needed"
    assert pictures.find(8, completed=False) is frames[8], "the server still has it"
    pictures.release(8, completed=False)
    assert pictures.find(None, completed=True) is frames[5]
    assert pictures.find(None, completed=False) is frames[8], "the newest decoded"
