"""Run the command line with `python -m aethernet`."""

import sys

from aethernet.commands.signals import end_at_interrupts

end_at_interrupts()  # before the imports that take their time

from aethernet.commands.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
