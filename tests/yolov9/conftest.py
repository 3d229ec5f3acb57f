"""The models of these tests are small: more than one thread costs more than it brings, above all on a busy machine."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
