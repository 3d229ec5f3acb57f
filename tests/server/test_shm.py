"""Arenas: views of slots, bounds, sealed size, nothing left behind."""

from __future__ import annotations

import os

import numpy as np
import pytest

from server.shm import Arena, slot_bytes


def test_what_one_mapping_writes_the_other_reads_without_a_copy() -> None:
    arena = Arena.create("test", 3, slot_bytes(64))
    other = Arena.attach(os.dup(arena.fd), 3, arena.slot_bytes)
    arena.image(2, 32, 64)[...] = 7
    assert (other.image(2, 32, 64) == 7).all()
    assert not other.image(1, 32, 64).any()
    arena.image(2, 32, 64)[5, 6] = (1, 2, 3)
    assert other.image(2, 32, 64)[5, 6].tolist() == [1, 2, 3]
    arena.close()
    other.close()


@pytest.mark.parametrize(("slot", "height", "width"), [(3, 32, 32), (-1, 32, 32), (0, 65, 64), (0, 0, 64), (0, -1, 8)])
def test_a_view_never_leaves_its_slot(slot: int, height: int, width: int) -> None:
    arena = Arena.create("test", 3, 64 * 64 * 3)
    with pytest.raises((IndexError, ValueError)):
        arena.image(slot, height, width)
    arena.close()


def test_nobody_can_shrink_it_under_the_others() -> None:
    arena = Arena.create("test", 1, slot_bytes(32))
    with pytest.raises(PermissionError):
        os.ftruncate(arena.fd, 0)
    arena.close()


def test_a_file_that_is_too_small_is_refused() -> None:
    arena = Arena.create("test", 1, slot_bytes(32))
    with pytest.raises(ValueError, match="bytes"):
        Arena.attach(arena.fd, 2, arena.slot_bytes)
    arena.close()


def test_closing_twice_and_with_a_view_alive_is_safe() -> None:
    arena = Arena.create("test", 1, slot_bytes(32))
    view: np.ndarray = arena.image(0, 32, 32)
    arena.close()
    arena.close()
    view[...] = 1
    assert view.sum() == 32 * 32 * 3


def test_pages_that_no_frame_needs_any_more_are_given_back_and_the_others_stay() -> None:
    large, small = slot_bytes(640), slot_bytes(64)
    arena = Arena.create("test", 2, large)
    assert os.fstat(arena.fd).st_blocks == 0, "nothing is taken before it is written"
    arena.image(1, 640, 640)[...] = 7
    assert os.fstat(arena.fd).st_blocks * 512 >= large
    arena.trim(small)
    assert os.fstat(arena.fd).st_blocks * 512 == small
    assert (arena.image(1, 64, 64) == 7).all()
    assert os.fstat(arena.fd).st_size == 2 * large
    arena.trim(large)
    arena.close()
    arena.trim(small)
