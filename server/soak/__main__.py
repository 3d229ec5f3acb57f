import sys

from server.soak.cli import main

sys.exit(main())
