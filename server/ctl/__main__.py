"""`python -m server.ctl`"""

import sys

from server.ctl.cli import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
