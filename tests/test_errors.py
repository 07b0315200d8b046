import os
import sys

import pytest
from helpers import ROOT, run

from aethernet.errors import MissingExtraError, import_optional


def test_a_library_that_is_there_is_imported():
    assert import_optional("json") is sys.modules["json"]
    assert import_optional("importlib.metadata").version


def test_a_missing_one_is_an_error_that_says_how_to_get_it():
    with pytest.raises(MissingExtraError, match="pip install no_such_library"):
        import_optional("no_such_library.part", "video")
    with pytest.raises(MissingExtraError, match=r'pip install "aethernet-sr\[video\]"'):
        import_optional("no_such_library", "video")


def test_an_import_that_fails_inside_a_library_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "broken_library.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        import_optional("broken_library")


def test_a_folder_of_that_name_is_not_the_library():
    # Run in the clone, where the folder "tools" would do as a namespace package.
    code = "from aethernet.errors import import_optional; import_optional('tools', 'x')"
    done = run("-c", code, cwd=ROOT)
    assert "MissingExtraError: The package tools is missing" in done.stderr


def test_libraries_send_nothing_about_their_use(tmp_path):
    """Two read a variable; OpenVINO works without the package that sends."""
    variables = {
        "onnxruntime": ("ORT_DISABLE_TELEMETRY", "1"),
        "ray": ("RAY_USAGE_STATS_ENABLED", "0"),
    }
    for library, (name, value) in variables.items():
        (tmp_path / f"{library}.py").write_text(
            f"import os\nassert os.environ[{name!r}] == {value!r}\n"
        )
    (tmp_path / "openvino_telemetry.py").write_text("print('sent')\n")
    (tmp_path / "openvino.py").write_text(
        "try:\n    import openvino_telemetry\nexcept ImportError:\n    print('quiet')\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from aethernet.errors import import_optional\n"
        "for name in ('onnxruntime', 'ray', 'openvino'): import_optional(name)\n"
        "import openvino_telemetry"  # others may use it afterwards
    )
    names = [name for name, _ in variables.values()]
    environment = {k: v for k, v in os.environ.items() if k not in names}
    done = run("-c", code, env=environment)
    assert done.stdout == "quiet\nsent\n", done.stderr
