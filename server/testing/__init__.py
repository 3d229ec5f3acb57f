"""Cameras of our own, for tests, the demo and the bench. Nothing here runs in a production server."""
