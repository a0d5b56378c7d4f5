"""``adclick export``"""

import json
from pathlib import Path

import msgspec

from adclick_edge.commands.torch_needed import needs_torch
from adclick_edge.errors import UsageError
from adclick_edge.models.presets import preset_named

__all__ = ["run"]

CLICKS = "clicks"


class _Probe(msgspec.Struct):
    kind: str = "seg"


def run(
    run_folder: Path | None,
    out: Path,
    product: str | None,
    backbone_weights: Path | None,
    backbone: str | None,
    preset_name: str,
    weights_license: str,
    base: Path | None,
    json_output: bool,
) -> None:
    if (run_folder is None) == (backbone_weights is None):
        raise UsageError("give a RUN folder, or --backbone-weights FILE: one of the two")
    with needs_torch("export"):
        from adclick_edge.export.run_bundle import export_backbone, export_run
    if run_folder is not None and _kind(run_folder) == CLICKS:
        if product is not None:
            raise UsageError("a run of clicks has no product of its own; give --base a product's bundle")
        _export_clicks(run_folder, out, base, weights_license, json_output)
        return
    if base is not None:
        raise UsageError("--base is for runs of `adclick train clicks`: the bundle that gets their graphs")
    if run_folder is not None:
        report = export_run(run_folder, out, product=product, weights_license=weights_license)
    else:
        assert backbone_weights is not None
        preset = preset_named(preset_name)
        if backbone is not None:
            preset = msgspec.structs.replace(preset, backbone=backbone)
        report = export_backbone(preset, backbone_weights, out, weights_license=weights_license)
    if json_output:
        print(json.dumps({"bundle": str(out), "parity": report.as_json()}))
        return
    print(f"{out}: written")
    print(
        f"parity over {report.frames} frames: map within {report.max_map_difference:.2g} of its spread, score within "
        f"{report.max_score_difference:.2g}, {report.changed_verdicts} changed verdicts, {report.other_rows} cells matched "
        "another row"
    )


def _kind(run_folder: Path) -> str:
    """Of the run; what is no run at all is left to the export to refuse."""
    try:
        return msgspec.json.decode((run_folder / "run.json").read_bytes(), type=_Probe).kind
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return "seg"


def _export_clicks(run_folder: Path, out: Path, base: Path | None, weights_license: str, json_output: bool) -> None:
    with needs_torch("export"):
        from adclick_edge.export.click_run import export_click_run
    report = export_click_run(run_folder, out, base=base, weights_license=weights_license)
    if json_output:
        print(json.dumps({"bundle": str(out), "parity": report.as_json()}))
        return
    print(f"{out}: written")
    print(
        f"parity over {report.frames} frames and {report.rounds} clicks on each: probability within "
        f"{report.max_probability_difference:.2g}, {report.changed_mask_share:.2%} of the masks' pixels changed"
    )
