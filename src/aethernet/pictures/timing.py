"""How long the frames of an animation are shown, and how often all of them."""

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Timing:
    """Of an animation."""

    seconds: tuple[Fraction, ...]
    """How long each frame is shown, as the file says."""
    plays: int
    """How often it is played in all; 0: for ever."""

    def milliseconds(self, step: int = 1) -> list[int]:
        """How long each frame is shown, in steps of so many milliseconds.

        What rounding adds to one frame is taken from the next, so that the whole does
        not become longer or shorter.
        """
        exact, written = Fraction(0), 0
        rounded = []
        for each in self.seconds:
            exact += 1000 * each
            shown = max(round((exact - written) / step) * step, 0)
            rounded.append(shown)
            written += shown
        return rounded
