"""Of all tests. Here and not further down, since what is collected first may already bring torch."""

import os

# The models of these tests are small: a second thread gains nothing, and OpenMP's threads wait for each other in busy
# loops, which beside any other work on the machine makes a test twenty times as slow. Processes of tests inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

# The same examples in every run, and no limit for one of them: on a busy machine any line may take a second.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")
