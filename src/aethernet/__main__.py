"""Run the command line with `python -m aethernet`."""

import sys

from aethernet.commands.main import main

sys.exit(main())
