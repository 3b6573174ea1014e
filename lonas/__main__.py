import sys

from lonas.cli import main

sys.exit(main())
