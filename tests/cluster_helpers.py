"""What the tests of the cluster and the processes they start have in common."""

import errno
import os
import signal

import numpy as np

from aethernet.pictures.files import Picture
from aethernet.pictures.write import write_picture
from aethernet.upscaling.cluster.worker import Answer, Worker, worth_retrying
from aethernet.upscaling.folders import Outcome, plan, prepare


def make_pictures(folder, count, side=40):
    """Write different pictures, named p00.png and so on, into two folders."""
    random = np.random.default_rng(0)
    for i in range(count):
        path = folder / ("inner" if i % 2 else ".") / f"p{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (side, side + i, 3), np.uint8)
        write_picture(Picture(pixels), path)


def planned(source, output):
    """The jobs of a folder; the folders of their outputs exist."""
    found = plan(
        [source],
        f"{output}/",
        suffix=None,
        scale_suffix=lambda: "_2x",
        format=None,
        overwrite=False,
    )
    prepare(found)
    return found.jobs


class Fragile(Worker):
    """One picture kills its worker, another fails once."""

    def answer(self, number, job):
        if job.source.name == "poison.png":
            os.kill(os.getpid(), signal.SIGKILL)
        if job.source.name == "flaky.png":
            mark = job.source.with_name("seen")
            if not mark.exists():
                mark.touch()
                error = OSError(errno.EIO, "Input/output error")
                failed = Outcome(job, "failed", str(error))
                return Answer(number, failed, worth_retrying(error))
        return super().answer(number, job)
