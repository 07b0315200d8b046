import sys

from aethernet.cli import main

sys.exit(main())
