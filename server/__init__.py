"""Real-time video detection server: every frame is accounted for, every result says how old it is."""

__version__ = "0.1.0"
