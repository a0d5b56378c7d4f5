"""What many tests need and is slow to make: pictures, weights, bundles and a training run, made once for all workers."""

import fcntl
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

# Before anything loads an OpenMP runtime: tests share few cores, and threads that wait for each other take longer.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from command_line import Adclick, Ran

from adclick_edge import cli

SIZE = 128
"""Pixels a side, of the sample line's pictures and of the input of the networks under test."""
PRODUCT = "flange"


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """``make_once(name, make)``: the path that ``make`` was given to fill, once, whichever worker came first."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made_once"
    shared.mkdir(exist_ok=True)

    def once(name: str, make: Callable[[Path], object]) -> Path:
        path = shared / name
        with open(shared / f".{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                draft = shared / "draft" / name
                shutil.rmtree(draft, ignore_errors=True)
                draft.parent.mkdir(exist_ok=True)
                make(draft)
                draft.rename(path)
        return path

    return once


@pytest.fixture(scope="session")
def line(make_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A sample line of two products: 14 normals to train on, 6 to test on, 2 defects of each kind."""
    from adclick_edge.data.sample_line import render_line

    return make_once(
        "line",
        lambda root: render_line(
            root, products=[PRODUCT, "fabric"], train_normals=14, test_normals=6, defects_per_kind=2, size=SIZE
        ),
    )


@pytest.fixture(scope="session")
def backbone_file(make_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The edge backbone with random weights of a scale that keeps features alive."""

    def make(path: Path) -> None:
        import torch
        from safetensors.torch import save_file

        from adclick_edge.features.backbones import create_backbone

        generator = torch.Generator().manual_seed(0)
        backbone = create_backbone("edge_backbone")
        for module in backbone.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                torch.nn.init.zeros_(module.bias)
        save_file(backbone.state_dict(), path)

    return make_once("backbone.safetensors", make)


@pytest.fixture(scope="session")
def weights_bundle(make_once: Callable[[str, Callable[[Path], object]], Path], backbone_file: Path) -> Path:
    """The export of `backbone_file` with the distance segmenter. Do not change it."""

    def make(path: Path) -> None:
        import msgspec

        from adclick_edge.export.run_bundle import export_backbone
        from adclick_edge.models.presets import PRESETS

        preset = msgspec.structs.replace(PRESETS["edge-s"], input_size=(SIZE, SIZE))
        export_backbone(preset, backbone_file, path, weights_license="none, random")

    return make_once("weights.bundle", make)


@pytest.fixture(scope="session")
def product_bundle(
    make_once: Callable[[str, Callable[[Path], object]], Path], weights_bundle: Path, line: Path
) -> Path:
    """A bundle of `PRODUCT` from its training normals. Do not change it: copy it first."""

    def make(path: Path) -> None:
        from adclick_edge.bundle import read_bundle
        from adclick_edge.data.dataset import open_product
        from adclick_edge.features.bank import BankOptions
        from adclick_edge.runtime.setup import SetUp, set_up_product

        normals = open_product(line, PRODUCT).normals("train")
        with read_bundle(weights_bundle) as weights:
            set_up_product(weights, normals, path, SetUp(PRODUCT, (SIZE, SIZE), BankOptions(rows=600, search_dims=32)))

    return make_once("product.bundle", make)


@pytest.fixture(scope="session")
def click_bundle(make_once: Callable[[str, Callable[[Path], object]], Path], weights_bundle: Path) -> Path:
    """`weights_bundle` with click graphs of a stand-in network for views of 64 px. Do not change it."""
    from click_samples import write_clicks

    return make_once("click.bundle", lambda path: write_clicks(weights_bundle, path))


@pytest.fixture(scope="session")
def click_product(make_once: Callable[[str, Callable[[Path], object]], Path], product_bundle: Path) -> Path:
    """`product_bundle` with the same click graphs. Do not change it."""
    from click_samples import write_clicks

    return make_once("click_product.bundle", lambda path: write_clicks(product_bundle, path))


@pytest.fixture(scope="session")
def seg_run(make_once: Callable[[str, Callable[[Path], object]], Path], backbone_file: Path, line: Path) -> Path:
    """A finished training run of 8 steps on `PRODUCT` at 64 px. Do not change it: copy it first."""
    from seg_samples import config_for

    from adclick_edge.training.seg import train_seg

    return make_once("run", lambda path: train_seg(path, config_for(line, backbone_file), device_name="cpu"))


@pytest.fixture(scope="session")
def run_bundle(make_once: Callable[[str, Callable[[Path], object]], Path], seg_run: Path) -> Path:
    """The export of `seg_run`, a product bundle. Do not change it: copy it first."""
    from adclick_edge.export.run_bundle import export_run

    return make_once("run.bundle", lambda path: export_run(seg_run, path, weights_license="none"))


@pytest.fixture
def bundle_copy(product_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(product_bundle, tmp_path / "copy.bundle")
    return tmp_path / "copy.bundle"


@pytest.fixture
def adclick(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Adclick:
    """``adclick(*arguments)`` in this process, through ``main`` and so with its exit codes."""

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["adclick", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        found = capsys.readouterr()
        return Ran(code, found.out, found.err)

    return run
