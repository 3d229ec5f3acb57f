"""Proof that a result belongs to the frame that it claims, and that it states that frame's times truly.

`pattern` burns a counter and a time into pictures and reads them back; `model` is a bundle whose detections are what
the pattern says, so that the whole server is under test; `judge` holds results against the camera's own log.
"""
