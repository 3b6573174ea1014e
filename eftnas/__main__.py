import sys

from eftnas.cli import main

sys.exit(main())
