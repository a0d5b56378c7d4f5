import subprocess
import sys

import msgspec
import pytest

from adclick_edge.errors import UsageError
from adclick_edge.models.presets import PRESETS, Preset, preset_named


@pytest.mark.parametrize("name", ["edge-s", "edge-m", "paper"])
def test_presets_are_found_by_name_and_usable(name: str) -> None:
    preset = preset_named(name)
    assert preset.name == name
    assert all(side % 16 == 0 for side in preset.input_size)
    assert 8 in preset.embedding_strides
    assert 0 < preset.bank.variance <= 1
    assert preset.bank.rows > 0


def test_an_unknown_preset_is_named_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'edge-xl'.*edge-s, edge-m, paper"):
        preset_named("edge-xl")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_json(name: str) -> None:
    assert msgspec.json.decode(msgspec.json.encode(PRESETS[name]), type=Preset) == PRESETS[name]


def test_a_preset_with_an_unknown_segmenter_is_refused() -> None:
    text = msgspec.json.encode(PRESETS["edge-s"]).replace(b'"segmenter":"edge"', b'"segmenter":"egde"')
    with pytest.raises(msgspec.ValidationError, match="egde"):
        msgspec.json.decode(text, type=Preset)


def test_backbones_of_presets_exist() -> None:
    from adclick_edge.features.backbones import BACKBONES

    assert {preset.backbone for preset in PRESETS.values()} <= set(BACKBONES)


def test_presets_are_read_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from adclick_edge.models.presets import PRESETS; print(*PRESETS)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["edge-s", "edge-m", "paper"]
