import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from command_line import Adclick, Ran

from adclick_edge import __version__, cli
from adclick_edge.bundle import read_bundle
from adclick_edge.commands import bank as bank_command
from adclick_edge.errors import AdclickError, ConfigError, ProtocolError, UsageError
from adclick_edge.runtime.inspector import Inspector

METRICS = ("pixel_ap", "pixel_auroc", "pro", "image_auroc", "image_ap", "f1_max")


def process(*arguments: object, **environment: str) -> Ran:
    command = [sys.executable, "-c", "from adclick_edge.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def bank_of(adclick: Adclick, weights_bundle: Path, line: Path, tmp_path: Path) -> Adclick:
    """``adclick bank`` of the sample line's flange with further options."""

    def run(*options: object) -> Ran:
        given = {"--data": line, "--product": "flange", "--weights": weights_bundle, "--out": tmp_path / "b"}
        options_given = {str(o) for o in options}
        base = [part for key, value in given.items() if key not in options_given for part in (key, value)]
        return adclick("bank", *base, *options)

    return run


# The whole path.


def test_from_good_parts_to_verdicts_and_figures(adclick: Adclick, weights_bundle: Path, tmp_path: Path) -> None:
    line, bundle = tmp_path / "line", tmp_path / "flange.bundle"
    counts = ("--train-normals", 8, "--test-normals", 4, "--defects-per-kind", 1, "--size", 128)
    rendered = adclick("sample-line", line, "--product", "flange", *counts, "--sheet", tmp_path / "sheet.jpg")
    assert rendered.code == 0
    assert (tmp_path / "sheet.jpg").read_bytes().startswith(b"\xff\xd8")

    made = adclick("bank", "--data", line, "--product", "flange", "--weights", weights_bundle, "--out", bundle)
    assert made.code == 0, made.err
    assert "8 normal pictures" in made.out
    assert "first thresholds" in made.out

    normals = line / "flange" / "test" / "good"
    defects = tmp_path / "defects"
    defects.mkdir()
    for kind in ("crack", "dent", "missing"):
        shutil.copy(line / "flange" / "test" / kind / "000.png", defects / f"{kind}.png")
    set_to = adclick(
        "calibrate",
        bundle,
        "--normals",
        normals,
        "--false-alarms",
        0.2,
        "--defects",
        defects,
        "--author",
        "me",
        "--json",
    ).json
    assert set_to["normals"] == 4
    assert set_to["defects"] == 3
    assert set_to["author"] == "me"
    assert set_to["source"] == "held_out"
    assert set_to["guaranteed_false_alarms"] == pytest.approx(0.2)

    found = adclick(
        "inspect", bundle, line / "flange" / "test", "--json", "--overlay", tmp_path / "drawn", "--threads", 1
    )
    verdicts = found.json
    assert verdicts["received"] == 10
    assert verdicts["received"] == sum(verdicts[v] for v in ("ok", "ng", "uncertain", "not_inspected"))
    assert verdicts["not_inspected"] == 0
    assert len(verdicts["frames"]) == 10
    assert {f["lower"] for f in verdicts["frames"]} == {set_to["lower"]}
    drawn = sorted(p.relative_to(tmp_path / "drawn").as_posix() for p in (tmp_path / "drawn").rglob("*.jpg"))
    assert "crack/000.png.jpg" in drawn
    assert len(drawn) == 10
    picture = cv2.imread(str(tmp_path / "drawn" / "crack" / "000.png.jpg"))
    assert picture is not None
    assert picture.shape[0] >= 128

    scored = adclick("eval", bundle, "--data", line, "--json", "--report", tmp_path / "report").json
    assert all(0 <= scored[name] <= 1 for name in METRICS)
    assert scored["images"] == 10
    assert scored["seconds"] > 0
    assert scored["product"] == "flange"
    assert scored["version"] == verdicts["version"]
    page = (tmp_path / "report" / "report.html").read_text()
    assert "flange" in page
    assert verdicts["version"] in page


def test_the_path_in_words(adclick: Adclick, bundle_copy: Path, line: Path, tmp_path: Path) -> None:
    said = adclick("calibrate", bundle_copy, "--normals", line / "flange" / "test" / "good")
    assert said.code == 0
    assert "ok below" in said.out
    assert "note: 6 normal frames cannot support 0.01 false alarms" in said.out
    said = adclick("inspect", bundle_copy, line / "flange" / "test" / "crack", "--overlay", tmp_path / "o")
    assert said.code == 0
    assert said.out.splitlines()[-2].startswith("2 received: ")
    assert said.out.count("000.png") == 1
    said = adclick("eval", bundle_copy, "--data", line)
    assert said.code == 0
    assert all(re.search(rf"^{name} +0\.\d{{4}}$", said.out, re.MULTILINE) for name in METRICS)


def test_json_is_one_object_on_stdout_and_everything_else_on_stderr(bundle_copy: Path, line: Path) -> None:
    (line_of, bad) = (bundle_copy.parent / "pictures", bundle_copy.parent / "pictures" / "bad.png")
    shutil.copytree(line / "flange" / "test" / "good", line_of)
    bad.write_bytes(b"not a picture")
    found = process("inspect", bundle_copy, line_of, "--json")
    assert found.json["not_inspected"] == 1
    assert "inspecting" in found.err
    assert "bad.png" in found.err
    scored = process("eval", bundle_copy, "--data", line, "--json")
    assert scored.json["images"] == 18
    assert "eval flange" in scored.err


# Exit codes.


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], 0),
        (["--help"], 0),
        (["inspect", "nowhere", "nothing"], 1),
        (["inspect"], 2),
        (["no-such-verb"], 2),
    ],
    ids=lambda x: str(x),
)
def test_exit_codes_of_the_process(arguments: list[str], code: int) -> None:
    done = process(*arguments)
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    assert bool(done.out) == (code == 0)
    assert bool(done.err) == (code != 0)
    if arguments == ["--version"]:
        assert done.out.strip() == __version__


def test_an_interrupt_ends_with_130_and_leaves_no_half_product(tmp_path: Path) -> None:
    # A shell that runs its jobs in the background makes them ignore interrupts; this one must not.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    start = f"{heed}; from adclick_edge.cli import main; main()"
    command = [sys.executable, "-c", start, "sample-line", str(tmp_path / "line")]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 30
        while not (tmp_path / "line").exists() and running.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.3)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=30)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 130
    assert "Traceback" not in said
    assert not [p for p in (tmp_path / "line").iterdir() if p.is_dir()]


def test_a_reader_that_goes_away_is_no_crash(product_bundle: Path, line: Path) -> None:
    command = [sys.executable, "-c", "from adclick_edge.cli import main; main()", "inspect", str(product_bundle)]
    running = subprocess.Popen(
        [*command, str(line / "flange")], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    assert running.stderr is not None
    first = running.stdout.readline()
    running.stdout.close()
    said = running.stderr.read()
    running.stderr.close()
    assert running.wait(timeout=60) == 1
    assert first.split()[0] in ("ok", "ng", "uncertain")
    assert "Traceback" not in said
    assert "Exception" not in said


def test_every_error_class_has_its_exit_code(adclick: Adclick, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = [AdclickError]
    for one in classes:
        classes += one.__subclasses__()
    assert len(classes) > 8
    for one in classes:

        def fail(error: type[AdclickError] = one) -> None:
            words = ["bad_message"] if error is ProtocolError else []
            raise error(*words, "[bold]what[/bold] is wrong")

        monkeypatch.setattr(cli, "app", fail)
        found = adclick()
        assert found.code == (2 if one in (UsageError, ConfigError) else 1)
        assert found.said.strip() == "error: [bold]what[/bold] is wrong"
        assert found.out == ""


def test_errors_of_the_system_are_one_line(adclick: Adclick, bundle_copy: Path, line: Path) -> None:
    (bundle_copy.parent / "file").write_text("in the way")
    found = adclick("eval", bundle_copy, "--data", line, "--report", bundle_copy.parent / "file" / "sub")
    assert found.code == 1
    assert re.search(r"error: \[Errno \d+\] Not a directory: '.*file", found.said)


# Wrong inputs of each kind.


@pytest.mark.parametrize("verb", ["inspect", "calibrate", "eval", "regions"])
@pytest.mark.parametrize("what", ["missing", "empty folder", "file", "weights"])
def test_what_is_no_product_bundle_is_refused(
    verb: str, what: str, adclick: Adclick, line: Path, tmp_path: Path, weights_bundle: Path
) -> None:
    bundle = {"weights": weights_bundle}.get(what, tmp_path / "it")
    if what == "empty folder":
        bundle.mkdir()
    elif what == "file":
        bundle.write_text("no zip")
    pictures = line / "flange" / "test" / "good"
    more = {"inspect": [pictures], "calibrate": ["--normals", pictures], "eval": ["--data", line], "regions": []}[verb]
    found = adclick(verb, bundle, *more)
    if (verb, what) == ("regions", "weights"):
        assert found.json == {"roi": [], "ignore": []}
        return
    assert found.code == 1
    assert found.out == ""
    assert bundle.name in found.said
    assert len(found.err.strip().splitlines()) == 1


@pytest.mark.parametrize("verb", ["inspect", "calibrate", "eval", "bank"])
def test_missing_data_is_named(
    verb: str, adclick: Adclick, product_bundle: Path, weights_bundle: Path, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    arguments = {
        "inspect": [product_bundle, gone],
        "calibrate": [product_bundle, "--normals", gone],
        "eval": [product_bundle, "--data", gone],
        "bank": ["--weights", weights_bundle, "--data", gone, "--out", tmp_path / "b"],
    }[verb]
    for _ in range(2):
        found = adclick(verb, *arguments)
        assert found.code == 1
        assert str(gone) in found.said
        assert found.out == ""
        gone.mkdir(exist_ok=True)  # and then a folder with nothing in it
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("verb", ["eval", "bank"])
def test_an_unknown_product_is_named_with_the_known_ones(
    verb: str, adclick: Adclick, product_bundle: Path, weights_bundle: Path, line: Path, tmp_path: Path
) -> None:
    more = [product_bundle] if verb == "eval" else ["--weights", weights_bundle, "--out", tmp_path / "b"]
    found = adclick(verb, *more, "--data", line, "--product", "bolt")
    assert found.code == 1
    assert "'bolt'; it has fabric, flange" in found.said
    found = adclick("bank", "--weights", weights_bundle, "--out", tmp_path / "b", "--data", line)
    assert found.code == 1
    assert "name one of fabric, flange" in found.said


def test_a_bad_frame_among_good_ones_gets_its_verdict(
    adclick: Adclick, product_bundle: Path, line: Path, tmp_path: Path
) -> None:
    shutil.copytree(line / "flange" / "test" / "good", tmp_path / "in")
    whole = (tmp_path / "in" / "000.png").read_bytes()
    (tmp_path / "in" / "000.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "empty.jpg").write_bytes(b"")
    (tmp_path / "in" / "notes.txt").write_text("not a picture, and not named like one")
    found = adclick("inspect", product_bundle, tmp_path / "in", "--json", "--overlay", tmp_path / "o")
    body = found.json
    assert body["received"] == 7
    assert body["received"] == body["ok"] + body["ng"] + body["uncertain"] + body["not_inspected"]
    bad = [f for f in body["frames"] if f["verdict"] == "not_inspected"]
    assert [Path(f["frame"]).name for f in bad] == ["000.png", "empty.jpg"]
    assert {f["reason"] for f in bad} == {"bad_frame"}
    assert all(f["score"] is None for f in bad)
    assert "000.png" in found.said
    assert len(list((tmp_path / "o").iterdir())) == 5
    in_words = adclick("inspect", product_bundle, tmp_path / "in")
    assert "not_inspected (bad_frame)" in in_words.out
    assert "2 not_inspected" in in_words.out


def test_no_frame_inspected_is_an_error_with_its_verdicts(
    adclick: Adclick, product_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    found = adclick("inspect", product_bundle, tmp_path / "bad.png", "--json")
    assert found.code == 1
    assert json.loads(found.out)["not_inspected"] == 1


def test_a_frame_the_engine_fails_on_gets_its_verdict(
    adclick: Adclick, product_bundle: Path, line: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adclick_edge.errors import EngineError

    plain = Inspector.inspect

    def failing(self: Inspector, frames: Any, names: Any) -> Any:
        if names[0].endswith("001.png"):
            raise EngineError("out of memory")
        return plain(self, frames, names)

    monkeypatch.setattr(Inspector, "inspect", failing)
    found = adclick("inspect", product_bundle, line / "flange" / "test" / "good", "--json")
    assert found.json["not_inspected"] == 1
    assert [f["reason"] for f in found.json["frames"]].count("engine_error") == 1
    assert "out of memory" in found.said


def test_one_picture(adclick: Adclick, product_bundle: Path, line: Path, tmp_path: Path) -> None:
    picture = line / "flange" / "test" / "crack" / "001.png"
    found = adclick("inspect", product_bundle, picture, "--json", "--overlay", tmp_path)
    assert found.json["received"] == 1
    assert found.json["frames"][0]["frame"] == str(picture)
    assert [p.name for p in tmp_path.iterdir()] == ["001.png.jpg"]


def test_without_thresholds_all_is_uncertain_and_said(adclick: Adclick, bundle_copy: Path, line: Path) -> None:
    (bundle_copy / "calibration.json").unlink()
    found = adclick("inspect", bundle_copy, line / "flange" / "test" / "good", "--json")
    assert found.json["uncertain"] == 6
    assert "no thresholds yet" in found.said


def test_calibrating_on_pictures_of_the_bank_is_refused(adclick: Adclick, bundle_copy: Path, line: Path) -> None:
    before = (bundle_copy / "calibration.json").read_bytes()
    folder = bundle_copy.parent / "mixed"
    shutil.copytree(line / "flange" / "test" / "good", folder)
    shutil.copy(line / "flange" / "train" / "good" / "003.png", folder / "sneaked_in.png")
    found = adclick("calibrate", bundle_copy, "--normals", folder)
    assert found.code == 1
    assert "1 of 7 calibration frames are in the bank" in found.said
    assert "sneaked_in.png" in found.said
    assert (bundle_copy / "calibration.json").read_bytes() == before


def test_calibrating_skips_what_cannot_be_read(adclick: Adclick, bundle_copy: Path, line: Path) -> None:
    folder = bundle_copy.parent / "mixed"
    shutil.copytree(line / "flange" / "test" / "good", folder)
    (folder / "000.png").write_bytes(b"")
    found = adclick("calibrate", bundle_copy, "--normals", folder, "--json")
    assert found.json["normals"] == 5
    assert "000.png" in found.said
    for path in folder.iterdir():
        path.write_bytes(b"")
    found = adclick("calibrate", bundle_copy, "--normals", folder)
    assert found.code == 1
    assert "none of the 6 normal pictures can be read" in found.said


def test_eval_leaves_out_what_it_was_made_from(
    adclick: Adclick, product_bundle: Path, line: Path, tmp_path: Path
) -> None:
    shutil.copytree(line / "flange", tmp_path / "flange")
    shutil.copy(line / "flange" / "train" / "good" / "000.png", tmp_path / "flange" / "test" / "good" / "copy.png")
    (tmp_path / "flange" / "test" / "good" / "001.png").write_bytes(b"")
    found = adclick(
        "eval", product_bundle, "--data", tmp_path, "--json", "--skip-kind", "crack", "--skip-kind", "dent"
    ).json
    assert found["left_out_trained_on"] == 1
    assert found["unreadable"] == 1
    assert found["images"] == 5 + 2 * 4
    shutil.rmtree(tmp_path / "flange" / "test")
    shutil.rmtree(tmp_path / "flange" / "ground_truth")
    (tmp_path / "flange" / "test" / "good").mkdir(parents=True)
    shutil.copy(line / "flange" / "train" / "good" / "000.png", tmp_path / "flange" / "test" / "good" / "copy.png")
    left = adclick("eval", product_bundle, "--data", tmp_path)
    assert left.code == 1
    assert "no test picture is left" in left.said


def test_eval_of_a_wrong_kind_is_refused(adclick: Adclick, product_bundle: Path, line: Path) -> None:
    found = adclick("eval", product_bundle, "--data", line, "--skip-kind", "craack")
    assert found.code == 2
    assert "'craack'" in found.said


def test_figures_that_do_not_exist_are_null_with_a_reason(
    adclick: Adclick, product_bundle: Path, line: Path, tmp_path: Path
) -> None:
    for name in ("train/good", "test/good"):
        shutil.copytree(line / "flange" / name, tmp_path / "flange" / name)
    found = adclick("eval", product_bundle, "--data", tmp_path, "--json").json
    assert found["pixel_ap"] is None
    assert found["undefined"]["pixel_ap"]
    assert "undefined: " in adclick("eval", product_bundle, "--data", tmp_path).out


# Regions.


def test_regions_are_shown_and_set(adclick: Adclick, bundle_copy: Path, line: Path, tmp_path: Path) -> None:
    assert adclick("regions", bundle_copy).json == {"roi": [], "ignore": []}
    polygon = [[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]]
    (tmp_path / "r.json").write_text(json.dumps({"ignore": [polygon]}))
    found = adclick("regions", bundle_copy, "--set", tmp_path / "r.json")
    assert found.json == {"roi": [], "ignore": [polygon]}
    assert "calibrate" in found.said
    assert adclick("regions", bundle_copy).json["ignore"] == [polygon]
    assert adclick("inspect", bundle_copy, line / "flange" / "test" / "crack", "--json").json["received"] == 2
    assert adclick("eval", bundle_copy, "--data", line, "--json").json["images"] == 18
    (tmp_path / "r.json").write_text('{"ignore": [[[0, 0], [2, 0], [1, 1]]]}')
    assert adclick("regions", bundle_copy, "--set", tmp_path / "r.json").code == 2
    assert adclick("regions", bundle_copy).json["ignore"] == [polygon]


# Options of bank.


@pytest.mark.parametrize(
    "options",
    [
        ["--size", 100],
        ["--size", 16],
        ["--rows", 0],
        ["--search-dims", 0],
        ["--position-weight", -0.1],
        ["--window", -1],
        ["--window", 2, "--retrieve", 3],
        ["--retrieve", 0],
        ["--tile-scale", 0],
        ["--tile-scale", 9],
        ["--tile-scale", 1, "--tile-overlap", 128],
        ["--tile-scale", 1, "--tile-overlap", 126],
        ["--tile-scale", 1, "--window", 2],
        ["--tile-scale", 1, "--position-weight", 0.1],
        ["--false-alarms", 0],
        ["--false-alarms", 0.6],
        ["--false-alarms", "few"],
        ["--split-normals", 1.5],
        ["--preset", "edge-xl"],
        ["--regions", "missing.json"],
        ["--split-normals", 0.5],
    ],
    ids=lambda x: " ".join(map(str, x)),
)
def test_bad_options_of_bank(options: list[object], bank_of: Adclick, tmp_path: Path) -> None:
    found = bank_of(*options)
    assert found.code == 2, found.err
    assert found.out == ""
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("options", "check"),
    [
        (["--rows", 50], lambda i: len(i.bank.rows) == 50),
        (["--search-dims", 7], lambda i: i.bank.projection.shape[1] == 7),
        (["--size", 64], lambda i: i.bank.grid == (8, 8)),
        (["--window", 1, "--position-weight", 0.1], lambda i: i.bank.window is not None and i.bank.position_scale > 0),
        (["--retrieve", 2], lambda i: i.bank.options.retrieve_images == 2),
        (["--tile-scale", 2, "--tile-overlap", 32], lambda i: i.bundle.manifest.tiling.overlap == 32),
        (["--false-alarms", 0.2], lambda i: i.calibration.false_alarms == 0.2),
    ],
    ids=lambda x: " ".join(map(str, x)) if isinstance(x, list) else "",
)
def test_options_of_bank_take_effect(
    options: list[object], check: Callable[[Inspector], bool], bank_of: Adclick, tmp_path: Path
) -> None:
    found = bank_of(*options)
    assert found.code == 0, found.err
    with Inspector.open(tmp_path / "b", threads=1) as inspector:
        assert check(inspector)


def test_bank_replaces_a_bundle_but_nothing_else(bank_of: Adclick, tmp_path: Path) -> None:
    assert bank_of("--rows", 50).code == 0
    with read_bundle(tmp_path / "b") as first:
        version = first.manifest.version
    assert bank_of("--rows", 60).code == 0
    with read_bundle(tmp_path / "b") as second:
        assert second.manifest.version != version
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    assert bank_of("--out", tmp_path / "mine").code == 1
    assert (tmp_path / "mine" / "diary.txt").read_text() == "dear diary"


def test_bank_takes_the_shipped_weights_and_says_when_there_are_none(
    adclick: Adclick, line: Path, tmp_path: Path, weights_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("bank", "--data", line, "--product", "flange", "--out", tmp_path / "b.zip", "--rows", 50)
    monkeypatch.setattr(bank_command, "SHIPPED_WEIGHTS", weights_bundle)
    assert adclick(*arguments).code == 0
    assert (tmp_path / "b.zip").is_file()
    monkeypatch.setattr(bank_command, "SHIPPED_WEIGHTS", tmp_path / "none.bundle")
    found = adclick(*arguments)
    assert found.code == 1
    assert "none.bundle" in found.said


def test_bank_of_backbone_weights(bank_of: Adclick, backbone_file: Path, tmp_path: Path) -> None:
    (tmp_path / "other.safetensors").write_bytes(b"noise")
    found = bank_of("--weights", tmp_path / "other.safetensors")
    assert found.code == 1
    assert "other.safetensors" in found.said
    found = bank_of("--weights", backbone_file, "--backbone", "resnet1")
    assert found.code == 2
    assert "resnet1" in found.said
    assert not (tmp_path / "b").exists()


def test_plain_folders_are_split_by_content(adclick: Adclick, line: Path, tmp_path: Path, weights_bundle: Path) -> None:
    shutil.copytree(line / "flange" / "train" / "good", tmp_path / "plain" / "normal")
    shutil.copytree(line / "flange" / "test" / "crack", tmp_path / "plain" / "defect")
    masks = tmp_path / "plain" / "masks"
    masks.mkdir()
    for mask in (line / "flange" / "ground_truth" / "crack").iterdir():
        shutil.copy(mask, masks / mask.name.replace("_mask", ""))
    arguments = (
        "bank",
        "--data",
        tmp_path / "plain",
        "--weights",
        weights_bundle,
        "--out",
        tmp_path / "b",
        "--rows",
        90,
    )
    unsplit = adclick(*arguments)
    assert unsplit.code == 1
    assert "--split-normals" in unsplit.said
    assert adclick(*arguments, "--split-normals", 0.5).code == 0
    scored = adclick("eval", tmp_path / "b", "--data", tmp_path / "plain", "--split-normals", 0.5, "--json").json
    assert scored["left_out_trained_on"] == 0
    assert scored["defect_images"] == 2
    assert 4 <= scored["normal_images"] <= 10
    assert scored["pixel_ap"] is not None


# Training and export.


def test_training_and_export(adclick: Adclick, line: Path, backbone_file: Path, tmp_path: Path) -> None:
    """Through the command line at the smallest scale; the export itself is tested elsewhere."""
    arguments = ("train", "seg", "--data", line, "--product", "flange", "--out", tmp_path / "run", "--device", "cpu")
    done = adclick(*arguments, "--backbone-weights", backbone_file, "--steps", 1, "--batch", 1, "--flip")
    assert done.code == 0, done.err
    assert "best validation pixel AP" in done.out
    other = adclick(*arguments, "--backbone-weights", backbone_file, "--steps", 2, "--batch", 1)
    assert other.code == 1
    assert "other settings" in other.said


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--preset", "edge-xl"], 2, "edge-xl"),
        (["--steps", "0"], 2, "steps"),
        (["--backbone", "resnet18"], 2, "ships without weights"),
        (["--backbone-weights", "missing.npz"], 1, "missing.npz"),
        (["--device", "warp"], 2, "warp"),
        (["--product", "bolt"], 1, "bolt"),
        (["--skip-kind", "craack"], 2, "craack"),
    ],
    ids=lambda x: str(x),
)
def test_bad_options_of_training(
    options: list[str],
    code: int,
    said: str,
    adclick: Adclick,
    line: Path,
    backbone_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("adclick_edge.features.weights.shipped_weights", lambda name: backbone_file)
    found = adclick("train", "seg", "--data", line, "--out", tmp_path / "run", *options)
    assert found.code == code, found.err
    assert said in found.said


def test_export_needs_one_source(adclick: Adclick, backbone_file: Path, tmp_path: Path) -> None:
    assert adclick("export", "--out", tmp_path / "b").code == 2
    assert adclick("export", tmp_path, "--backbone-weights", backbone_file, "--out", tmp_path / "b").code == 2
    found = adclick("export", tmp_path, "--out", tmp_path / "b")
    assert found.code == 1
    assert "not a training run" in found.said


def test_export_tells_parity(
    adclick: Adclick, weights_bundle: Path, backbone_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adclick_edge.export import run_bundle

    graphs = {p.name: p.read_bytes() for p in weights_bundle.glob("*.onnx")}
    monkeypatch.setattr(run_bundle, "export_graphs", lambda *_: graphs)
    arguments = ("export", "--backbone-weights", backbone_file, "--out", tmp_path / "b", "--weights-license", "none")
    body = adclick(*arguments, "--json").json
    assert body["bundle"] == str(tmp_path / "b")
    assert body["parity"]["changed_verdicts"] == 0
    assert "0 changed verdicts" in adclick(*arguments).out
    with read_bundle(tmp_path / "b") as bundle:
        assert bundle.manifest.parity == body["parity"]


@pytest.mark.parametrize("missing", ["torch", "onnx"])
def test_without_torch_training_and_export_say_what_to_install(missing: str, line: Path, tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from adclick_edge.cli import main; main()"
    verbs = [["export", str(tmp_path)]]
    if missing == "torch":
        verbs.append(["train", "seg", "--data", str(line), "--out", str(tmp_path / "run")])
    for verb in verbs:
        done = subprocess.run([sys.executable, "-c", code, *verb], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "adclick-edge[train]" in done.stderr
        assert "Traceback" not in done.stderr


# The sample line.


@pytest.mark.parametrize(
    "options", [["--size", 10], ["--product", "bolt"], ["--train-normals", 0], ["--seed", -1]], ids=str
)
def test_bad_options_of_sample_line(options: list[object], adclick: Adclick, tmp_path: Path) -> None:
    assert adclick("sample-line", tmp_path / "line", *options).code == 2
    assert not (tmp_path / "line").exists()


def test_a_line_that_is_there_is_not_rendered_again(adclick: Adclick, tmp_path: Path) -> None:
    arguments = ("sample-line", tmp_path / "line", "--product", "fabric", "--train-normals", 1, "--test-normals", 0)
    arguments += ("--defects-per-kind", 0, "--size", 64)
    assert adclick(*arguments).code == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "line").rglob("*")}
    again = adclick(*arguments)
    assert "holds this very line already" in again.said
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "line").rglob("*")} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    assert adclick("sample-line", tmp_path / "mine", "--size", 64).code == 1


@pytest.mark.slow
def test_demo(adclick: Adclick, weights_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adclick_edge.commands import demo

    monkeypatch.setattr(demo, "SHIPPED_WEIGHTS", weights_bundle)
    found = adclick("demo", "line", tmp_path)
    assert found.code == 0, found.err
    sheet = cv2.imread(str(tmp_path / "overlays.jpg"))
    assert sheet is not None
    assert np.ptp(sheet) > 100
    for product in ("board", "fabric", "flange"):
        assert (tmp_path / f"{product}.report" / "report.html").is_file()
        assert product in found.out
