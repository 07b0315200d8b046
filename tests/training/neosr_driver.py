"""neosr on a machine without a GPU; run by neosr's own Python (see neosr_real.py).

    python neosr_driver.py NEOSR JOBS RESULTS

NEOSR is the folder that holds the package `neosr`, and train.py and test.py where its
version has them. JOBS is a JSON file, a list of `{"job": name, "argv": [..], ..}`;
`argv` is the command line that neosr sees. RESULTS is written as a list of dicts: what
the job returned, or `error` and `message`; and what neosr logged as `log`.

neosr asks for the device "cuda" in some forty places. Here such a request gives the
CPU's counterpart, so that neosr's own code runs unchanged, bfloat16 autocast included.
"""

import contextlib
import inspect
import json
import logging
import re
import runpy
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torchvision
from torch.overrides import TorchFunctionMode

NEOSR = Path(sys.argv[1])
# Sections that neosr passes as keywords, and where to find the receiver.
RECEIVERS = {
    "network_d": "ARCH_REGISTRY",
    "train": "LOSS_REGISTRY",
    "val": "METRIC_REGISTRY",
}


class OnTheCpu(TorchFunctionMode):
    """Does on the CPU what is asked of the device "cuda"."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.cuda:
            return args[0]
        named = {key: on_cpu(value) for key, value in (kwargs or {}).items()}
        return func(*map(on_cpu, args), **named)


def on_cpu(value):
    is_device = isinstance(value, str | torch.device)
    return torch.device("cpu") if is_device and f"{value}" == "cuda" else value


class CpuGenerator(torch.Generator):
    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")


def without_gpu() -> None:
    """Replace functions that ask for CUDA other than by a torch argument."""

    def named_device_type(original):
        return lambda *args, **named: original(*args, **{**named, "device_type": "cpu"})

    load, scaler = torch.load, torch.amp.GradScaler
    torch.load = lambda *args, **named: load(*args, **{**named, "map_location": "cpu"})
    torch.amp.GradScaler = lambda _device, **named: scaler("cpu", **named)
    torch.amp.custom_fwd = named_device_type(torch.amp.custom_fwd)
    torch.autocast = named_device_type(torch.autocast)
    torch.Generator = CpuGenerator
    torch.set_default_device = lambda device: None
    torch.accelerator.is_available = lambda: False  # no pinned memory
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_name = lambda: "none"
    torch.cuda.get_device_capability = lambda: (8, 0)
    torch.cuda.Stream = lambda: None
    torch.cuda.stream = lambda stream: contextlib.nullcontext()
    torch.cuda.current_stream = lambda: SimpleNamespace(wait_stream=lambda stream: None)


def without_downloads() -> None:
    """VGG19 with random weights: the real ones are 575 MB."""
    vgg = torchvision.models.vgg

    def vgg19(weights=None):
        return SimpleNamespace(features=vgg.make_layers(vgg.cfgs["E"]))

    vgg.vgg19 = vgg19


ASKED: set[str] = set()  # keys of option files, as "train.optim_g.lr"


class Recorded(dict):
    """A section of an option file that records in ASKED which keys were read."""

    def __init__(self, section: dict, name: str = "") -> None:
        self.name = name
        super().__init__(
            (key, Recorded(value, f"{name}{key}.") if type(value) is dict else value)
            for key, value in section.items()
        )

    def __getitem__(self, key):
        ASKED.add(f"{self.name}{key}")
        return super().__getitem__(key)

    def get(self, key, default=None):
        ASKED.add(f"{self.name}{key}")
        return super().get(key, default)

    def pop(self, key, *default):
        ASKED.add(f"{self.name}{key}")
        return super().pop(key, *default)

    def __deepcopy__(self, memo):
        return Recorded({key: dict.__getitem__(self, key) for key in self}, self.name)


def receiver(section: str, options: dict):
    """The class or function that receives this section as keywords, or None."""
    import neosr.utils.registry as registries
    from neosr.optimizers import adan_sf

    if section in ("train.optim_g", "train.optim_d"):
        return {"adan_sf": adan_sf, "adamw": torch.optim.AdamW}[options["type"]]
    registry = RECEIVERS.get(section.partition(".")[0])
    if registry is None or "type" not in options:
        return None
    return getattr(registries, registry).get(options["type"])


def unknown_keys(path: str) -> list[str]:
    """Keys of an option file that neither `Recorded` saw nor a signature names.

    A key that is only iterated over (`for key in section`) does not count as known.
    That a key is asked for does not tell whether its value means what our file says.
    """
    options = tomllib.loads(Path(path).read_text("utf-8"))
    unknown = []

    def visit(section: dict, name: str) -> None:
        gets_it = receiver(name, section)
        known = set(inspect.signature(gets_it).parameters) if gets_it else set()
        if name == "network_g":
            known = set(section)  # AetherNet itself refuses an unknown key
        if name == "degradations":
            known = named_in("models/otf.py") | named_in("data/otf_dataset.py")
        for key, value in section.items():
            full = f"{name}.{key}".lstrip(".")
            if isinstance(value, dict):
                visit(value, full)
            elif key not in known and full not in ASKED:
                unknown.append(full)

    visit(options, "")
    return unknown


def named_in(file: str) -> set[str]:
    """Words in quotes in a file of neosr.

    For degradations: which of them are asked for is a matter of chance in a short run.
    """
    return set(re.findall(r'"(\w+)"', (NEOSR / "neosr" / file).read_text("utf-8")))


def options_of_command_line(is_train: bool = True) -> dict:
    from neosr.utils.options import parse_options

    options = parse_options(str(NEOSR), is_train=is_train)[0]
    options["root_path"] = str(NEOSR)
    return options


def parse() -> dict:
    """The result of neosr's `parse_options` for an option file."""
    options = options_of_command_line()
    return {"name": options["name"], "network": options["network_g"]["type"]}


def build(network: dict) -> dict:
    """A network that neosr's `build_network` builds."""
    from neosr.archs import build_network

    return {"hyperparameters": build_network(network).hyperparameters}


def step() -> dict:
    """Two steps of neosr's model class, with its optimizer and losses, on noise.

    Two, because the first step of adan_sf leaves the weights where they are.
    """
    from neosr.models import build_model

    options = options_of_command_line()
    model = build_model(options)
    network = model.net_g
    before = [weight.detach().clone() for weight in network.parameters()]
    train = options["datasets"]["train"]
    low = torch.rand(train["batch_size"], 3, train["patch_size"], train["patch_size"])
    high = torch.nn.functional.interpolate(low, scale_factor=options["scale"])
    for iteration in (1, 2):
        model.feed_data({"lq": low, "gt": high})
        model.optimize_parameters(iteration)
    after = list(network.parameters())
    pairs = zip(before, after, strict=True)
    return {
        "hyperparameters": network.hyperparameters,
        "optimizer": type(model.optimizer_g).__name__,
        "output": list(model.output.shape),
        "losses": dict(model.get_current_log()),
        "tensors": len(after),
        "changed": sum(not torch.equal(old, new) for old, new in pairs),
        "finite": all(bool(weight.isfinite().all()) for weight in after),
    }


def gan_gradient() -> dict:
    """The size of the gradient that neosr's GAN loss alone gives the network."""
    from neosr.models import build_model

    options = options_of_command_line()
    for name, section in options["train"].items():
        if name.endswith("_opt") and name != "gan_opt":
            section["loss_weight"] = 0.0
    model = build_model(options)
    low = torch.rand(1, 3, 16, 16)
    high = torch.rand(1, 3, 16 * options["scale"], 16 * options["scale"])
    model.feed_data({"lq": low, "gt": high})
    model.closure(1)
    gradients = [p.grad for p in model.net_g.parameters() if p.grad is not None]
    return {"gradient": float(sum(g.abs().sum() for g in gradients))}


def train() -> dict:
    """A training run; returns the keys of the option file that nothing read."""
    import neosr.utils.options as neosr_options

    load = neosr_options.toml_load
    ASKED.clear()
    neosr_options.toml_load = lambda path: Recorded(load(path))
    try:
        if (NEOSR / "train.py").exists():
            runpy.run_path(str(NEOSR / "train.py"), run_name="__main__")
        else:
            train_without_train_py()
    finally:
        neosr_options.toml_load = load
    return {"unknown": unknown_keys(sys.argv[sys.argv.index("-opt") + 1])}


def train_without_train_py() -> None:
    """Do what neosr's train.py does, for a version without that file."""
    from neosr.data import build_dataloader, build_dataset
    from neosr.models import build_model
    from neosr.utils import check_resume, make_exp_dirs

    options = options_of_command_line()
    resumed = options["path"].get("resume_state")
    if resumed:
        resumed = torch.load(resumed, weights_only=True)
        check_resume(options, resumed["iter"])
    else:
        make_exp_dirs(options)
    section = options["datasets"]["train"]
    section.update(options.get("degradations", {}))
    loader = build_dataloader(build_dataset(section), section, num_gpu=0, seed=1)
    model = build_model(options)
    iteration = 0
    if resumed:
        model.resume_training(resumed)
        iteration = resumed["iter"]
    logger = options["logger"]
    while iteration < logger["total_iter"]:
        for batch in loader:
            iteration += 1
            model.feed_data(batch)
            model.optimize_parameters(iteration)
            model.update_learning_rate(iteration)
            if iteration % logger["save_checkpoint_freq"] == 0:
                model.save(0, iteration)
            if iteration == logger["total_iter"]:
                break
    model.save(-1, -1)
    validate(model, options, "val")


def validate(model, options: dict, phase: str) -> None:
    from neosr.data import build_dataloader, build_dataset

    for name, section in options["datasets"].items():
        if name.startswith(phase):
            loader = build_dataloader(build_dataset(section), section)
            model.validation(loader, options["name"], None, save_img=True)


def test() -> dict:
    """Run neosr's test.py, or do the same where there is none."""
    if (NEOSR / "test.py").exists():
        runpy.run_path(str(NEOSR / "test.py"), run_name="__main__")
    else:
        from neosr.models import build_model
        from neosr.utils import make_exp_dirs

        options = options_of_command_line(is_train=False)
        make_exp_dirs(options)
        validate(build_model(options), options, "test")
    return {}


def infer(image: str, output: str) -> dict:
    """Run the network of a test option file on one picture, both as .npy files."""
    from neosr.models import build_model

    network = build_model(options_of_command_line(is_train=False)).net_g.eval()
    with torch.no_grad():
        np.save(output, network(torch.from_numpy(np.load(image))).numpy())
    return {}


def state(checkpoint: str) -> dict:
    """The weights a run starts from, after neosr loaded its pretrained network."""
    from neosr.models import build_model

    network = build_model(options_of_command_line()).net_g
    saved = torch.load(checkpoint)["params"]
    own = network.state_dict()
    loaded = [k for k, v in saved.items() if k in own and torch.equal(own[k], v)]
    return {"loaded": loaded, "keys": [*own]}


def copied_file() -> dict:
    """Import neosr with the drop-in file twice in its folder."""
    archs = NEOSR / "neosr/archs"
    second = archs / "aether2_arch.py"
    second.write_bytes((archs / "aether_arch.py").read_bytes())
    try:
        return build({"type": "aether_small"})
    finally:
        second.unlink()


class Memory(logging.Handler):
    """Collects the messages of neosr's logger during one job."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


JOBS = {
    function.__name__: function
    for function in (
        parse,
        build,
        step,
        gan_gradient,
        train,
        test,
        infer,
        state,
        copied_file,
    )
}


def run(job: str, argv: list[str], **arguments) -> dict:
    sys.argv = argv
    memory = Memory()
    logger = logging.getLogger("neosr")
    logger.setLevel(logging.INFO)
    logger.addHandler(memory)
    try:
        result = JOBS[job](**arguments)
    except (Exception, SystemExit) as error:
        logger.exception("the job stopped")
        result = {"error": type(error).__name__, "message": str(error)}
    finally:
        logger.removeHandler(memory)
    return {**result, "log": "\n".join(memory.lines)}


def main() -> None:
    jobs, results = (Path(argument) for argument in sys.argv[2:])
    sys.path[0] = str(NEOSR)  # in place of this file's folder
    torch.set_num_threads(1)
    without_gpu()
    without_downloads()
    with OnTheCpu():
        done = [run(**job) for job in json.loads(jobs.read_text("utf-8"))]
    results.write_text(json.dumps(done), "utf-8")


if __name__ == "__main__":
    main()
