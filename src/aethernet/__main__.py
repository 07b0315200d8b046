"""`python -m aethernet`: the command."""

import sys

from aethernet.commands.main import main

sys.exit(main())
