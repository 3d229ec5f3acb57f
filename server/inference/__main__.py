"""Entry of an inference worker's process: `python -m server.inference FD`, started by `server.inference.process`."""

import sys

from server.inference.worker import main

main(int(sys.argv[1]))
