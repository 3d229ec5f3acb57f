"""`python -m server.bench`."""

from server.bench.cli import main

raise SystemExit(main())
