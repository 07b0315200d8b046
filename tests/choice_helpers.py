"""Stand-ins for all runtimes, and a clock of their own, for the tests of the choice."""

import numpy as np

from aethernet.errors import AetherError
from aethernet.runtimes import choice, trial
from aethernet.runtimes.base import Description, RuntimeSpec
from aethernet.runtimes.pytorch import PyTorchRuntime
from aethernet.runtimes.trial import Cost

EVERYTHING = dict.fromkeys(("torch", "onnx", "onnxruntime", "openvino"), "1")


def little():
    """Pixels of a small picture."""
    return 1000


class Stage:
    """Stand-ins for all runtimes, and a clock that shows the times given here.

    `seconds`, `noise` and `broken` are by runtime, or by "runtime precision". Seconds
    are a number; or a list of costs, one for each round.
    """

    def __init__(self, monkeypatch):
        self.seconds = {"pytorch": 3.0, "onnxruntime": 2.0, "openvino": 1.0}
        self.noise, self.broken, self.more = {}, {}, {}
        self.loaded, self.timed, self.asked = [], [], []
        self.devices = ("cpu",)
        self.versions = dict(EVERYTHING)
        monkeypatch.setattr(
            RuntimeSpec, "import_class", lambda spec: self.stand_in(spec.name)
        )
        monkeypatch.setattr(
            choice,
            "installed_versions",
            lambda names: {n: v for n, v in self.versions.items() if n in names},
        )
        monkeypatch.setattr(choice, "may_use_gpu", lambda names: True)
        monkeypatch.setattr(choice, "has_reduced_precision_units", lambda: True)
        monkeypatch.setattr(trial, "measure", self.clock)
        monkeypatch.setattr(trial, "TILE", 24)  # to save time

    def of(self, table, name, precision, default=None):
        return table.get(f"{name} {precision}", table.get(name, default))

    def clock(self, model, tile):
        assert tile.shape[-2:] == (24, 24)
        precision = model.describe().precision
        self.timed.append(f"{model.name} {precision}")
        given = self.of(self.seconds, model.name, precision)
        if isinstance(given, list):
            return given[self.timed.count(self.timed[-1]) - 1]
        return Cost(given, given)

    def stand_in(self, name):
        stage = self

        class StandIn(PyTorchRuntime):
            @classmethod
            def load(cls, path, device, precision):
                stage.loaded.append(f"{name} {precision}")
                problem = stage.of(stage.broken, name, precision)
                if problem:
                    raise AetherError(problem)
                model = super().load(path, "cpu", "float32")
                model.name, model.asked, model.where = name, precision, device
                return model

            @classmethod
            def devices(cls):
                stage.asked.append(name)
                return stage.devices if name != "native" else ("cpu",)

            @classmethod
            def precisions(cls, path, device):
                return ("float32", *stage.more.get(name, ()))

            def run(self, batch):
                noise = stage.of(stage.noise, name, self.asked, 0.0)
                return super().run(batch) + np.float32(noise)

            def describe(self):
                return Description(name, self.where, self.asked, self.why)

        return StandIn
