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
    """ONNX Runtime reads a variable; OpenVINO works without the package that sends."""
    (tmp_path / "onnxruntime.py").write_text(
        "import os\nassert os.environ['ORT_DISABLE_TELEMETRY'] == '1'\n"
    )
    (tmp_path / "openvino_telemetry.py").write_text("print('sent')\n")
    (tmp_path / "openvino.py").write_text(
        "try:\n    import openvino_telemetry\nexcept ImportError:\n    print('quiet')\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from aethernet.errors import import_optional\n"
        "import_optional('onnxruntime'); import_optional('openvino')\n"
        "import openvino_telemetry"  # others may use it afterwards
    )
    environment = {**os.environ}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    done = run("-c", code, env=environment)
    assert done.stdout == "quiet\nsent\n", done.stderr
