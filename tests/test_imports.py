import importlib
import json
import pkgutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import adclick_edge

WITHOUT_TORCH = "import sys; sys.modules.update(dict.fromkeys(['torch', 'onnx', 'onnxscript', 'onnx_ir']))"

EVERY_MODULE = sorted(
    {"adclick_edge"} | {m.name for m in pkgutil.walk_packages(adclick_edge.__path__, "adclick_edge.")}
)
FOR_THE_EDGE_BOX = [
    name
    for name in EVERY_MODULE
    if name.startswith(
        (
            "adclick_edge.runtime",
            "adclick_edge.line",
            "adclick_edge.commands",
            "adclick_edge.bundle",
            "adclick_edge.cli",
            "adclick_edge.console",
            "adclick_edge.errors",
            "adclick_edge.evaluation",
            "adclick_edge.data",
            "adclick_edge.words",
            "adclick_edge.files",
            "adclick_edge.models.presets",
        )
    )
]
# What docs/design.md allows to import torch or onnx.
WITH_TORCH = (
    "adclick_edge.models.",
    "adclick_edge.training.",
    "adclick_edge.export.",
    "adclick_edge.features.backbones",
    "adclick_edge.features.extractor",
    "adclick_edge.features.embedding",
    "adclick_edge.features.residual_torch",
    "adclick_edge.features.weights",
)
WITHOUT_IN_SPITE = {
    "adclick_edge.models.presets",
    "adclick_edge.training.click_pictures",
    "adclick_edge.training.click_run",
    "adclick_edge.training.click_sampling",
    "adclick_edge.training.curves",
    "adclick_edge.training.episodes",
    "adclick_edge.training.labels",
    "adclick_edge.training.run_folder",
    "adclick_edge.training.schedule",
}


def python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_is_quick() -> None:
    code = "import time; t = time.perf_counter(); import adclick_edge; print(time.perf_counter() - t)"
    assert min(float(python(code)) for _ in range(5)) < 0.2


def test_help_loads_neither_onnxruntime_nor_matplotlib_nor_cv2() -> None:
    """What makes ``adclick --help`` quick: verbs are imported when they run."""
    code = """
        import sys
        import adclick_edge.cli
        print(*sorted({"onnxruntime", "matplotlib", "cv2", "torch", "numpy"} & set(sys.modules)))
    """
    assert python(code).split() == []


def test_the_list_of_modules_is_the_whole_package() -> None:
    root = Path(adclick_edge.__file__).parent
    files = {
        ".".join(("adclick_edge", *p.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
        for folder in (root, *(root / name for name in ("export", "kernels")))
        for p in folder.rglob("*.py")
    }
    assert files == set(EVERY_MODULE)
    assert len(FOR_THE_EDGE_BOX) > 40


def test_the_edge_box_needs_no_torch() -> None:
    """Each module in a process of its own would take minutes; one process tells as well which fail."""
    code = (
        WITHOUT_TORCH
        + """
import importlib, json
failed = {}
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed[name] = str(error)
print(json.dumps(failed))
"""
    )
    assert json.loads(python(code, json.dumps(FOR_THE_EDGE_BOX))) == {}


def test_only_the_modules_of_the_design_import_torch() -> None:
    code = (
        WITHOUT_TORCH
        + """
import importlib, json
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except ImportError:
        print(name)
"""
    )
    failed = python(code, json.dumps(EVERY_MODULE)).split()
    assert [name for name in failed if not name.startswith(WITH_TORCH)] == []
    assert not WITHOUT_IN_SPITE & set(failed)
    assert set(EVERY_MODULE) >= WITHOUT_IN_SPITE
    assert len(failed) > 5


@pytest.mark.parametrize("name", EVERY_MODULE)
def test_all_is_true(name: str) -> None:
    module = importlib.import_module(name)
    assert [n for n in getattr(module, "__all__", []) if not hasattr(module, n)] == []
    named = getattr(module, "__all__", [])
    assert list(named) == sorted(set(named), key=list(named).index)
    path = Path(str(module.__file__))
    if path.name != "__init__.py" and path.stem != "__main__":
        assert named, f"{name} has no __all__"


def test_setting_up_and_inspecting_without_torch(weights_bundle: Path, line: Path, tmp_path: Path) -> None:
    bundle = str(tmp_path / "flange.bundle")
    run_cli = WITHOUT_TORCH + "; from adclick_edge.cli import main; sys.argv[0] = 'adclick'; main()"
    python(
        run_cli, "bank", "--data", str(line), "--product", "flange", "--weights", str(weights_bundle), "--out", bundle
    )
    said = python(run_cli, "inspect", bundle, str(line / "flange" / "test" / "missing"), "--json")
    assert json.loads(said)["received"] == 2
