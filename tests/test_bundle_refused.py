import json
import os
import stat
import zipfile
from pathlib import Path

import pytest
from bundle_samples import FILES, SETTINGS, entries_of, make, repack, reseal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adclick_edge.bundle import FileEntry, read_bundle, version_of
from adclick_edge.bundle import archive as archive_module
from adclick_edge.errors import BundleError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "out" / "nut")


@pytest.mark.parametrize("name", ["../evil.onnx", "/tmp/evil.onnx", "a\\b"])
def test_traversal_names_in_a_manifest_are_refused(folder, name):
    files = json.loads((folder / "manifest.json").read_bytes())["files"]
    files[name] = {"sha256": "0" * 64, "size_bytes": 0}
    version = version_of({n: FileEntry(**e) for n, e in files.items()})
    reseal(folder, files=files, version=version)
    with pytest.raises(BundleError, match="not allowed"):
        read_bundle(folder)


@pytest.mark.parametrize("name", ["../evil", "/evil", "a\\evil", "golden/../../evil"])
def test_traversal_names_in_a_zip_are_refused_before_unpacking(tmp_path, name):
    path = make(tmp_path / "b.zip")
    repack(path, [*entries_of(path), (zipfile.ZipInfo(name), b"x")])
    scratch = tmp_path / "deep" / "scratch"
    scratch.mkdir(parents=True)
    with pytest.raises(BundleError, match="not allowed"):
        read_bundle(path, unpack_to=scratch)
    assert not list(tmp_path.rglob("*evil*"))


def test_links_doubles_and_encryption_in_a_zip_are_refused(tmp_path):
    path = make(tmp_path / "b.zip")
    entries = entries_of(path)
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(BundleError, match="link or a special file"):
        read_bundle(repack(tmp_path / "link.zip", [*entries, (link, b"/etc/passwd")]))
    with pytest.warns(UserWarning, match="Duplicate"):
        repack(tmp_path / "double.zip", [*entries, ("features.onnx", b"other")])
    with pytest.raises(BundleError, match=r"features.onnx is in the zip twice"):
        read_bundle(tmp_path / "double.zip")
    with pytest.raises(BundleError, match="unusual compression"):
        read_bundle(repack(tmp_path / "lzma.zip", entries, zipfile.ZIP_LZMA))
    repack(tmp_path / "deflated.zip", entries, zipfile.ZIP_DEFLATED)
    with read_bundle(tmp_path / "deflated.zip") as bundle:
        assert bundle.read("features.onnx") == FILES["features.onnx"]


def test_zip_bombs_are_refused(tmp_path, monkeypatch):
    path = make(tmp_path / "b.zip")
    bomb = repack(tmp_path / "bomb.zip", [*entries_of(path), ("zeros", bytes(70 << 20))], zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(BundleError, match="would unpack to"):
        read_bundle(bomb)
    monkeypatch.setattr(archive_module, "_MAX_ENTRIES", 3)
    with pytest.raises(BundleError, match="entries"):
        read_bundle(path)


@pytest.mark.parametrize("name", [*FILES, "manifest.json", "calibration.json", "regions.json"])
def test_a_flipped_byte_in_any_file_is_refused(folder, name):
    file = folder / name
    data = file.read_bytes()
    for position in {0, len(data) // 3, len(data) // 2, len(data) - 2}:
        broken = bytearray(data)
        broken[position] ^= 0x04
        file.write_bytes(broken)
        with pytest.raises(BundleError, match=name):
            read_bundle(folder)
    file.write_bytes(data)
    read_bundle(folder).close()


@pytest.mark.parametrize("name", [*FILES, "manifest.json", "calibration.json", "regions.json"])
def test_a_truncated_missing_or_linked_file_is_refused(folder, name):
    file = folder / name
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(BundleError, match=name):
        read_bundle(folder)
    file.unlink()
    if name in ("calibration.json", "regions.json"):
        read_bundle(folder).close()
    else:
        with pytest.raises(BundleError, match=name):
            read_bundle(folder)
    real = folder.parent / "elsewhere"
    real.write_bytes(data)
    file.symlink_to(real)
    with pytest.raises(BundleError, match="symbolic link"):
        read_bundle(folder)


def test_linked_folder_inside_is_refused_but_a_link_to_the_bundle_is_not(folder, tmp_path):
    (tmp_path / "current").symlink_to(folder)
    with read_bundle(tmp_path / "current") as bundle:
        assert bundle.location == folder
    (folder / "golden").rename(tmp_path / "golden")
    (folder / "golden").symlink_to(tmp_path / "golden")
    with pytest.raises(BundleError, match="golden is a symbolic link"):
        read_bundle(folder)


@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_in_a_zip_is_refused_or_harmless(tmp_path, position, bit):
    path = tmp_path / "b.zip"
    if not path.exists():
        make(path)
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 1 << bit
    broken = tmp_path / "broken.zip"
    broken.write_bytes(data)
    try:
        bundle = read_bundle(broken)
    except BundleError:
        return
    with bundle:  # a bit of a date or of a mode
        assert {name: bundle.read(name) for name in bundle.manifest.files} == FILES
        assert bundle.calibration in (SETTINGS["calibration"], None)


def test_future_and_past_schemas(folder):
    reseal(folder, schema_version=2, some_new_key=1)
    with pytest.raises(BundleError, match=r"schema version 2.*update adclick-edge"):
        read_bundle(folder)
    reseal(folder, schema_version=0)
    with pytest.raises(BundleError, match=r"no longer reads.*export the bundle again"):
        read_bundle(folder)


def test_unknown_keys_wrong_types_and_versions(folder):
    original = (folder / "manifest.json").read_bytes()
    for changes, says in (
        ({"colour": "red"}, "colour"),
        ({"embedding_dims": "512"}, "embedding_dims"),
        ({"version": "0123456789ab"}, "version is '0123456789ab'"),
    ):
        reseal(folder, **changes)
        with pytest.raises(BundleError, match=says):
            read_bundle(folder)
        (folder / "manifest.json").write_bytes(original)
    raw = json.loads(original)
    raw["metrics"]["pixel_ap"] = 0.99
    (folder / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match="was altered after it was written"):
        read_bundle(folder)


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", "{" * 10, "[" * 100_000, '{"schema_version": "1"}', "\xff"])
def test_rubbish_manifests(folder, text):
    (folder / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read"):
        read_bundle(folder)


def test_what_is_not_a_bundle(tmp_path):
    with pytest.raises(BundleError, match="no bundle here"):
        read_bundle(tmp_path / "none")
    with pytest.raises(BundleError, match=r"manifest\.json is missing"):
        read_bundle(tmp_path)
    (tmp_path / "x.zip").write_bytes(b"hello")
    with pytest.raises(BundleError, match="zip cannot be used"):
        read_bundle(tmp_path / "x.zip")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BundleError, match="neither a folder nor a file"):
        read_bundle(tmp_path / "pipe")
    make(tmp_path / "b.zip")
    packed = [(f"b/{name}", data) for name, data in entries_of(tmp_path / "b.zip")]
    with pytest.raises(BundleError, match="not the folder"):
        read_bundle(repack(tmp_path / "nested.zip", packed))


def test_a_file_altered_after_opening_is_not_handed_out(folder):
    with read_bundle(folder) as bundle:
        (folder / "segment.onnx").write_bytes(FILES["segment.onnx"][:-1] + b"!")
        with pytest.raises(BundleError, match=r"segment\.onnx was altered"):
            bundle.read("segment.onnx")
        with pytest.raises(BundleError, match=r"segment\.onnx was altered"):
            bundle.check()
