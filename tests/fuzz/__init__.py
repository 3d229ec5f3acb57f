"""Hostile bytes against everything that reads what others wrote: `python -m tests.fuzz`, see docs/fuzzing.md.

A target is one reader with its rule: it may answer or raise its documented error, nothing else, within a bound of time.
"""

import sys
from pathlib import Path

_TESTS = Path(__file__).parents[1]
# Helpers of other tests, found as pytest finds them.
sys.path += [str(_TESTS / room) for room in ("server", "yolov9") if str(_TESTS / room) not in sys.path]
