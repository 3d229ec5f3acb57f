"""Cameras in processes of their own, under the name by which the system tests know them."""

from server.testing.processes import CameraProcess, gst_missing

__all__ = ["CameraProcess", "gst_missing"]
