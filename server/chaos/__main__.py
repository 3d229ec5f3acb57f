import sys

from server.chaos.cli import main

sys.exit(main())
