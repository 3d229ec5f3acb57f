"""Cameras in, letterboxed frames in shared memory out. One operating-system process for each camera."""
