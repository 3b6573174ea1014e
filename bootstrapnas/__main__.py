import sys

from bootstrapnas.cli import main

sys.exit(main())
