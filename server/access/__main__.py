"""`python -m server.access`"""

import sys

from server.access.cli import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
