"""Bounds on checkpoints, so that no small file takes minutes or gigabytes.

`torch.load(weights_only=True)` runs no code, but the pickle in PyTorch's files is a
program all the same: a few bytes can make it fill the memory. Here its instructions are
followed first, without making anything of the size that they ask for. What a state dict
does not need is refused, and so is what claims more than the file holds.
"""

import io
import json
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from struct import calcsize, error, unpack
from typing import Any, BinaryIO, NoReturn

from aethernet.errors import CheckpointError, first_line

MOST_KEYS = 20_000
"""Keys of a state dict; the largest networks that spandrel knows have about 5,000."""

LONGEST_KEY = 1_000
"""Characters of a key."""

# Bytes of a pickle: a state dict takes about 200 for each key, and a training framework
# may add its options.
LARGEST_PICKLE = 16_000_000

# Instructions of a pickle: a tensor takes about 40.
MOST_INSTRUCTIONS = 500_000

# Uncompressed bytes for each byte of a file: weights shrink by a tenth, fresh biases to
# nothing.
MOST_EXPANSION = 10

# Values in the dicts within a file, characters of its metadata.
_MOST_VALUES, _LONGEST_METADATA = 500_000, 200_000

# How often tensors may share the same values, e.g. "params" and "params_ema".
MOST_SHARING = 8

# Files of the old format begin with three pickles before that of the content.
_OLD_MAGIC = 0x1950A86A20F9469CFC6C

# Bytes of a value, by the names of PyTorch's classes of storages.
_WIDTHS = {
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Char", "Byte", "Bool", "QInt8", "QUInt8", "Untyped"), 1),
    "ComplexDouble": 16,
}

_REBUILD = "torch._utils._rebuild_"

# What makes a tensor: name -> arguments are storage, offset, size and stride.
_TENSORS = {f"{_REBUILD}tensor", f"{_REBUILD}tensor_v2", f"{_REBUILD}tensor_v3"}
_PARAMETERS = {f"{_REBUILD}parameter", f"{_REBUILD}parameter_with_state"}
# Tensors without values of their own, which the reader of weights refuses by name.
_OTHER_TENSORS = {
    f"{_REBUILD}sparse_tensor",
    f"{_REBUILD}meta_tensor_no_storage",
    "torch.serialization._get_layout",
}
_DICTS = {"collections.OrderedDict", "collections.Counter"}
_WITH_ATTRIBUTES = "torch._tensor._rebuild_from_type_v2"
_CLASSES = {"torch.Tensor", "torch.nn.parameter.Parameter"}
_PLAIN_CALLS = {
    *("torch.Size", "torch.device"),
    *("builtins.set", "__builtin__.set", "builtins.complex", "__builtin__.complex"),
}
NUMPY_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
"""The function that makes a NumPy scalar, as NumPy 1 and NumPy 2 name it."""
_NUMPY_DTYPE = "numpy.dtype"
_NUMPY_KINDS = {
    "b1",
    "f2",
    "f4",
    "f8",
    *(f"{k}{n}" for k in "iu" for n in (1, 2, 4, 8)),
}

# Sides of a tensor, as many as PyTorch allows.
_MOST_SIDES = 64

_KNOWN = {
    *(*_TENSORS, *_PARAMETERS, *_OTHER_TENSORS, *_DICTS, *_CLASSES, *_PLAIN_CALLS),
    *(*NUMPY_SCALARS, _NUMPY_DTYPE, _WITH_ATTRIBUTES, "_codecs.encode"),
}

# States of NumPy types without fields; others can crash NumPy.
_NUMPY_STATES = [(3, order, None, None, None, -1, -1, 0) for order in "<|"]

_UNBOUNDED = 2**63

_SCALARS = (str, int, float, bytes, bool, type(None))


@dataclass(eq=False)
class _Made:
    """What a call or a global in a pickle stands for."""

    name: str
    values: int = 0
    """How many values a storage or a tensor has, keys a dict, or bytes a type."""


class _Dict(_Made):
    """A dict; only the number of its keys matters here."""


def check_pickle_limits(path: Path) -> None:
    """Check a `.pth`, `.pt` or `.ckpt` file before it is given to PyTorch.

    Takes memory for the pickle and its instructions only.

    Raises:
        CheckpointError: when the file is damaged, holds what a state dict does not
            need, or claims more than it holds.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                _check_zip(file, path.stat().st_size)
            else:
                file.seek(0)
                _check_old_format(file, path.stat().st_size)
    except CheckpointError as refusal:
        raise refusal.about(path) from refusal
    except (
        *(zipfile.BadZipFile, NotImplementedError, EOFError, OSError),
        *(ValueError, LookupError, TypeError, AttributeError, zlib.error, error),
    ) as damage:
        raise CheckpointError(
            "The file is truncated or damaged.", path, "Download or copy it again."
        ) from damage


def check_keys(keys: Collection[object]) -> None:
    """Check the number of keys of a state dict, and their lengths.

    Raises:
        CheckpointError: when there are too many, or one is too long.
    """
    if len(keys) > MOST_KEYS:
        _refuse(f"it has {len(keys):,} keys")
    for key in keys:
        _check_key(key)


def wrapped_dicts(content: Mapping[Any, Any]) -> dict[str, Mapping[Any, Any]]:
    """Dicts in the content of a file by dotted name, three levels deep.

    Raises:
        CheckpointError: when there is too much: a dict may contain itself.
    """
    left = iter(range(_MOST_VALUES))

    def walk(part: Mapping[Any, Any], prefix: str, depth: int) -> Iterator[Any]:
        for key, value in part.items():
            if next(left, None) is None:
                _refuse(f"the dicts in it hold more than {_MOST_VALUES:,} values")
            if isinstance(value, Mapping) and value and key != "metadata":
                yield f"{prefix}{key}", value
                if depth > 1:
                    yield from walk(value, f"{prefix}{key}.", depth - 1)

    return dict(walk(content, "", 3))


def text_metadata(metadata: Mapping[Any, Any]) -> dict[str, str]:
    """Metadata as text: texts as they are, other values as JSON.

    Raises:
        CheckpointError: when a value contains itself or is not JSON, or all are too
            long.
    """
    encoder = json.JSONEncoder(default=str)
    texts, left = {}, _LONGEST_METADATA
    for key, value in metadata.items():
        parts = []
        try:
            for part in (
                [value] if isinstance(value, str) else encoder.iterencode(value)
            ):
                parts.append(part)
                left -= len(part)
                if left < 0:
                    _refuse(f"its metadata has over {_LONGEST_METADATA:,} characters")
        except (TypeError, ValueError, RecursionError) as damage:
            detail = first_line(damage).rstrip(".")
            raise CheckpointError(f"The metadata is damaged ({detail}).") from damage
        texts[str(key)] = "".join(parts)
    return texts


def _check_zip(file: BinaryIO, size: int) -> None:
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        names = {record.filename.lower() for record in records}
        if len(names) != len(records):
            raise ValueError("a name occurs twice")
        if len(records) > MOST_KEYS * MOST_SHARING:
            _refuse(f"it has {len(records):,} records")
        root = records[0].filename.partition("/")[0]
        if f"{root}/constants.pkl" in names:
            raise CheckpointError("A TorchScript archive, not a state dict.")
        total = sum(record.file_size for record in records)
        if total > MOST_EXPANSION * size:
            _refuse(f"its {size:,} bytes would become {total:,}")
        content = archive.getinfo(f"{root}/data.pkl")
        if content.file_size > LARGEST_PICKLE:
            _refuse(f"its pickle has {content.file_size:,} bytes")
        with archive.open(content) as pickled:
            # The size is given because the compressed data may hold more.
            program = io.BytesIO(pickled.read(content.file_size))
        sizes = {record.filename: record.file_size for record in records}
    found = _Program(program, MOST_INSTRUCTIONS)
    found.run()
    for key, (_, in_bytes) in found.storages.items():
        if sizes.get(f"{root}/data/{key}") != in_bytes:
            raise ValueError("a record has another size than its tensor")
    found.check_sharing()


def _check_old_format(file: BinaryIO, size: int) -> None:
    """As PyTorch wrote before version 1.6: pickles one after another, then values."""
    if tarfile.is_tarfile(file):  # which PyTorch would unpack
        raise ValueError("an archive of before version 0.4")
    file.seek(0)
    programs: list[_Program] = []
    for _ in ("magic", "protocol", "system", "content", "keys of the storages"):
        done = sum(program.instructions for program in programs)
        program = _Program(file, MOST_INSTRUCTIONS - done)
        made = program.run()
        if not programs and made != _OLD_MAGIC:
            raise ValueError("this pickle is not PyTorch's")
        programs.append(program)
    for program in programs:
        if sum(in_bytes for _, in_bytes in program.storages.values()) > size:
            raise EOFError("less values than the tensors have")
        program.check_sharing()


def _refuse(found: str) -> NoReturn:
    raise CheckpointError(
        f"Not loaded: {found}, more than any checkpoint needs.",
        hint="Ask its author for the bare state dict.",
    )


def _refuse_objects() -> NoReturn:
    raise CheckpointError(
        "The file holds Python objects other than tensors. They could run code when "
        "loaded, so the file was not loaded.",
        hint="Ask its author for the bare state dict.",
    )


class _Program:
    """The pickle at the position of a file, followed to its end."""

    def __init__(self, file: Any, most_instructions: int) -> None:
        self._read_some, self._readline = file.read, file.readline
        self._most = most_instructions
        self._bytes = 0
        self.instructions = 0
        self.storages: dict[str, tuple[int, int]] = {}
        """By key: number of values, and bytes."""
        self._claimed = 0
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Follow all instructions; return what stands for the content."""
        handlers = _HANDLERS
        read = self._read_some
        while True:
            code = read(1)
            if not code:
                raise EOFError("the pickle ends early")
            self.instructions += 1
            if self.instructions > self._most:
                _refuse(f"its pickle has more than {MOST_INSTRUCTIONS:,} instructions")
            if code == pickle.STOP:
                return self._stack.pop()
            handler = handlers.get(code)
            if handler is None:
                _refuse_objects()
            handler(self)

    def check_sharing(self) -> None:
        """Check that tensors do not claim many times the values that there are."""
        stored = sum(values for values, _ in self.storages.values())
        if self._claimed > MOST_SHARING * stored:
            _refuse(f"its tensors claim {self._claimed:,} values of {stored:,}")

    def read(self, count: int) -> bytes:
        """So many bytes, all of them.

        Raises:
            EOFError: when there are less.
        """
        self.charge(count)
        data = self._read_some(count)
        if len(data) != count:
            raise EOFError("the pickle ends early")
        return data

    def number(self, form: str) -> Any:
        """A number, in this form of the module `struct`."""
        return unpack(form, self._read_some(calcsize(form)))[0]

    def charge(self, count: int) -> None:
        """Count bytes that are held in memory."""
        self._bytes += count
        if self._bytes > LARGEST_PICKLE:
            _refuse(f"its pickle holds more than {LARGEST_PICKLE:,} bytes")

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def popped_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._marks.pop()
        return items

    def mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def name(self) -> None:
        """GLOBAL: the name of a class or function."""
        module = self._readline(LONGEST_KEY)[:-1].decode()
        name = f"{module}.{self._readline(LONGEST_KEY)[:-1].decode()}"
        if module not in ("torch", "torch.storage") and name not in _KNOWN:
            _refuse_objects()
        self.push(_Made(name))

    def tuple_of(self, count: int) -> None:
        items = tuple(self._stack[-count:])
        if len(items) != count:
            raise LookupError("the stack is too short")
        self._stack[-count:] = [items]

    def append(self) -> None:
        item = self._stack.pop()
        _list(self._stack[-1]).append(item)

    def append_all(self) -> None:
        items = self.popped_mark()
        _list(self._stack[-1]).extend(items)

    def set_item(self) -> None:
        value = self._stack.pop()
        self._set([self._stack.pop(), value])

    def set_items(self) -> None:
        self._set(self.popped_mark())

    def _set(self, pairs: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, _Dict) or len(pairs) % 2:
            _refuse_objects()
        for key in pairs[::2]:
            _check_key(key)
        target.values += len(pairs) // 2
        if target.values > MOST_KEYS:
            _refuse(f"a dict in it has more than {MOST_KEYS:,} keys")

    def storage(self) -> None:
        """BINPERSID: a storage, ("storage", class, key, location, number of values)."""
        kind, made, key, _, count, *_ = self._stack.pop()
        width = _WIDTHS.get(made.name.rpartition(".")[2].removesuffix("Storage"))
        known = kind == "storage" and type(key) is str and width is not None
        if not known or type(count) is not int or not 0 <= count < _UNBOUNDED:
            _refuse_objects()
        found = (count, count * (width or 1))
        if self.storages.setdefault(key, found) != found:
            raise ValueError("a storage of two sizes")
        self.push(_Made("storage", count))

    def call(self) -> None:
        """REDUCE: a call of what GLOBAL has named."""
        arguments = self._stack.pop()
        called = self._stack[-1]
        if not isinstance(called, _Made) or type(arguments) is not tuple:
            _refuse_objects()
        self._stack[-1] = self._result(called.name, arguments)

    def _result(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if name in _TENSORS:
            return self._tensor(arguments)
        if name in _PARAMETERS:
            if not isinstance(arguments[0], _Made) or arguments[0].name != "tensor":
                _refuse_objects()
            return arguments[0]
        if name in _OTHER_TENSORS:
            return _Made("other")
        if name in _DICTS:
            return self._dict_of(arguments)
        if name == "_codecs.encode":
            return self._encoded(arguments)
        if name in _PLAIN_CALLS:
            for argument in arguments:
                items = argument if type(argument) in (list, tuple) else (argument,)
                self.charge(len(items))
                for item in items:
                    _check_key(item)
            return _Made("plain")
        if name == _WITH_ATTRIBUTES:
            called, kind, inner, _ = arguments
            if kind.name not in _CLASSES or called.name == name:
                _refuse_objects()
            return self._result(called.name, inner)
        return _numpy_scalar(name, arguments)

    def _tensor(self, arguments: tuple[Any, ...]) -> _Made:
        """A tensor, whose values all have to be in its storage, each once."""
        storage, offset, size, stride = arguments[:4]
        if storage.name != "storage" or not len(size) == len(stride) <= _MOST_SIDES:
            raise ValueError("no tensor")
        sides = (offset, *size, *stride)
        if not all(type(n) is int and 0 <= n < _UNBOUNDED for n in sides):
            raise ValueError("no tensor")
        values = prod(size)
        last = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if values and (values > storage.values or offset + last >= storage.values):
            raise CheckpointError(
                f"A tensor of the size {[*size]} has only {storage.values:,} values "
                "in the file."
            )
        self._claimed += values
        return _Made("tensor", values)

    def _dict_of(self, arguments: tuple[Any, ...]) -> _Dict:
        """A dict made of nothing, of another dict or of a list of pairs."""
        made = _Dict("dict")
        for argument in arguments:
            if isinstance(argument, _Dict):
                made.values += argument.values
            else:
                made.values += len(_list(argument))
                for key, _ in argument:
                    _check_key(key)
        self.charge(made.values)
        return made

    def _encoded(self, arguments: tuple[Any, ...]) -> bytes:
        text, encoding = arguments
        if type(text) is not str or encoding not in ("latin1", "latin-1"):
            _refuse_objects()
        self.charge(len(text))
        return text.encode("latin-1")

    def build(self) -> None:
        """BUILD: attributes of an object; only those of dicts and NumPy's types."""
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, _Dict):
            if not isinstance(state, _Dict):
                _refuse_objects()
            self.charge(state.values)
            return
        dtype = isinstance(target, _Made) and target.name == "dtype"
        if not dtype or state not in _NUMPY_STATES:
            _refuse_objects()


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        _refuse_objects()
    return value


def _numpy_scalar(name: str, arguments: tuple[Any, ...]) -> _Made:
    """A NumPy scalar, or its type, of the plain kinds only."""
    if name == _NUMPY_DTYPE:
        kind, *rest = arguments
        if type(kind) is not str or kind not in _NUMPY_KINDS or rest != [False, True]:
            _refuse_objects()
        return _Made("dtype", int(kind[1:]))
    if name not in NUMPY_SCALARS:
        _refuse_objects()
    dtype, data = arguments
    if dtype.name != "dtype" or type(data) is not bytes or len(data) != dtype.values:
        _refuse_objects()
    return _Made("scalar")


def _check_key(key: Any) -> None:
    """Check that looking up a key takes no time: tuples in tuples can take for ever."""
    for part in key if type(key) is tuple else (key,):
        if type(part) not in _SCALARS and not (
            isinstance(part, _Made) and part.name == "scalar"
        ):
            _refuse("a key in it is no text")
        if type(part) in (str, bytes) and len(part) > LONGEST_KEY:
            _refuse(f"a key in it has {len(part):,} characters")


# What to do for each instruction that PyTorch's own reader knows.
_HANDLERS: dict[bytes, Callable[[_Program], Any]] = {
    pickle.NONE: lambda program: program.push(None),
    pickle.NEWTRUE: lambda program: program.push(True),
    pickle.NEWFALSE: lambda program: program.push(False),
    pickle.EMPTY_TUPLE: lambda program: program.push(()),
    pickle.EMPTY_LIST: lambda program: program.push([]),
    pickle.EMPTY_SET: lambda program: program.push(_Made("plain")),
    pickle.EMPTY_DICT: lambda program: program.push(_Dict("dict")),
    pickle.BININT: lambda program: program.push(program.number("<i")),
    pickle.BININT1: lambda program: program.push(program.number("<B")),
    pickle.BININT2: lambda program: program.push(program.number("<H")),
    pickle.BINFLOAT: lambda program: program.push(program.number(">d")),
    pickle.LONG1: lambda program: program.push(
        pickle.decode_long(program.read(program.number("<B")))
    ),
    pickle.BINUNICODE: lambda program: program.push(
        program.read(program.number("<I")).decode("utf-8", "surrogatepass")
    ),
    pickle.SHORT_BINSTRING: lambda program: program.push(
        program.read(program.number("<B"))
    ),
    pickle.PROTO: lambda program: program.number("<B"),
    pickle.BINPUT: lambda program: program.put(program.number("<B")),
    pickle.LONG_BINPUT: lambda program: program.put(program.number("<I")),
    pickle.BINGET: lambda program: program.get(program.number("<B")),
    pickle.LONG_BINGET: lambda program: program.get(program.number("<I")),
    pickle.TUPLE1: lambda program: program.tuple_of(1),
    pickle.TUPLE2: lambda program: program.tuple_of(2),
    pickle.TUPLE3: lambda program: program.tuple_of(3),
    pickle.TUPLE: lambda program: program.push(tuple(program.popped_mark())),
    pickle.MARK: _Program.mark,
    pickle.GLOBAL: _Program.name,
    pickle.REDUCE: _Program.call,
    pickle.BUILD: _Program.build,
    pickle.APPEND: _Program.append,
    pickle.APPENDS: _Program.append_all,
    pickle.SETITEM: _Program.set_item,
    pickle.SETITEMS: _Program.set_items,
    pickle.BINPERSID: _Program.storage,
}


def numpy_globals() -> list[Any]:
    """What `torch.load` has to accept for NumPy scalars: `check_pickle_limits` checks
    how a file uses it."""
    import numpy as np

    scalar = type(np.float64(0)).__reduce__(np.float64(0))[0]
    kinds = {type(np.dtype(kind)) for kind in _NUMPY_KINDS}
    return [*((scalar, name) for name in NUMPY_SCALARS), np.dtype, *kinds]
