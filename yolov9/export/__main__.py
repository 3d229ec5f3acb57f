import sys

from yolov9.export.command import main

sys.exit(main())
