"""The command line: ``adclick VERB``. Results go to stdout, everything else to stderr.

Exit codes: 0 good, 1 a clear error, 2 wrong usage, 130 interrupted.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from adclick_edge import __version__
from adclick_edge.cli_line import line_app
from adclick_edge.console import progress_console
from adclick_edge.errors import AdclickError

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Inspection for production lines.",
)
train_app = typer.Typer(no_args_is_help=True, help="Train networks (needs adclick-edge[train]).")
app.add_typer(train_app, name="train")
app.add_typer(line_app)
demo_app = typer.Typer(no_args_is_help=True, help="Whole jobs on procedural data, to look at.")
app.add_typer(demo_app, name="demo")
words_app = typer.Typer(
    no_args_is_help=True, help="Names of defects as vectors, from a text encoder in a local folder."
)
app.add_typer(words_app, name="words")

Data = Annotated[
    Path, typer.Option(help="Folder of a data set: MVTec AD, KSDD2, BTAD, VisA or normal/ defect/ masks/.")
]
ProductName = Annotated[str | None, typer.Option(help="Name of the product; not needed where there is only one.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
SplitNormals = Annotated[
    float | None,
    typer.Option(
        min=0.05, max=0.95, help="For data without a split: share of the normals to train on, chosen by content."
    ),
]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command("sample-line")
def sample_line(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="Where to put it.")],
    product: Annotated[list[str] | None, typer.Option(help="Only these products.")] = None,
    train_normals: Annotated[int, typer.Option(min=1)] = 40,
    test_normals: Annotated[int, typer.Option(min=0)] = 16,
    defects_per_kind: Annotated[int, typer.Option(min=0)] = 5,
    size: Annotated[int, typer.Option(help="Height and width of the pictures, in pixels.")] = 320,
    seed: int = 0,
    sheet: Annotated[Path | None, typer.Option(help="Also draw a contact sheet to this file (.jpg or .png).")] = None,
) -> None:
    """Render a procedural product line in MVTec AD layout: products, defects, exact masks."""
    from adclick_edge.commands.sample_line import run

    run(root, product, train_normals, test_normals, defects_per_kind, size, seed, sheet)


@app.command()
def bank(
    data: Data,
    out: Annotated[Path, typer.Option(help="The bundle to write: a folder, or a file ending with .zip.")],
    product: ProductName = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Bundle whose networks to use, or backbone weights (.npz .safetensors .pth, needs [train]); default: shipped."
        ),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Name of the backbone, where --weights are backbone weights.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="edge-s, edge-m or paper; default: the weights' own.")] = None,
    size: Annotated[int | None, typer.Option(help="Height and width the network sees; a multiple of 16.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Most rows of the bank.")] = None,
    search_dims: Annotated[int | None, typer.Option(min=1, help="Most principal components searched.")] = None,
    position_weight: Annotated[float | None, typer.Option(min=0, help="0.03 textures, 0.15 aligned parts.")] = None,
    window: Annotated[
        int | None, typer.Option(min=0, help="Hard position window in cells of 8 px, for aligned parts.")
    ] = None,
    retrieve: Annotated[
        int | None, typer.Option(min=1, help="Search only the rows of so many nearest normals.")
    ] = None,
    tile_scale: Annotated[
        float | None, typer.Option(min=0.01, max=8, help="Inspect in tiles; frames are scaled by this first.")
    ] = None,
    tile_overlap: Annotated[int, typer.Option(min=0, help="Overlap of tiles in pixels.")] = 64,
    regions: Annotated[Path | None, typer.Option(help="JSON file of roi and ignore polygons.")] = None,
    false_alarms: Annotated[
        float, typer.Option(min=1e-6, max=0.5, help="False-alarm budget of the first thresholds.")
    ] = 0.01,
    split_normals: SplitNormals = None,
) -> None:
    """Set up a product from pictures of good parts: seconds, no training, no torch."""
    from adclick_edge.commands.bank import BankCall, run

    run(
        BankCall(
            data=data,
            out=out,
            product=product,
            weights=weights,
            backbone=backbone,
            preset=preset,
            size=size,
            rows=rows,
            search_dims=search_dims,
            position_weight=position_weight,
            window=window,
            retrieve=retrieve,
            tile_scale=tile_scale,
            tile_overlap=tile_overlap,
            regions=regions,
            false_alarms=false_alarms,
            split_normals=split_normals,
        )
    )


@train_app.command("seg")
def train_seg(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run there is gone on with.")],
    product: Annotated[list[str] | None, typer.Option(help="Products to train on; default: all of --data.")] = None,
    preset: str = "edge-s",
    backbone: Annotated[str | None, typer.Option(help="Another backbone than the preset's.")] = None,
    backbone_weights: Annotated[Path | None, typer.Option(help="Its weights; default: the shipped ones.")] = None,
    steps: Annotated[int, typer.Option(min=1)] = 1500,
    batch: Annotated[int, typer.Option(min=1)] = 8,
    learning_rate: float = 1e-3,
    real_defects: Annotated[
        int, typer.Option(min=0, help="Labelled defects per kind to train on, chosen by content.")
    ] = 0,
    labels: Annotated[
        Path | None, typer.Option(help="Label folder of `adclick label`: train on its masks instead.")
    ] = None,
    skip_kind: Annotated[list[str] | None, typer.Option(help="Kinds of defect not to train on.")] = None,
    flip: Annotated[bool, typer.Option(help="Mirror pictures at random; for textures.")] = False,
    seed: int = 0,
    validate_every: Annotated[int, typer.Option(min=1)] = 100,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    mixed_precision: Annotated[bool, typer.Option(help="bfloat16 where it is safe; for GPUs.")] = False,
    split_normals: SplitNormals = None,
) -> None:
    """Train ADClick-Seg on synthetic defects, and on labelled ones where given. Goes on after a stop."""
    from adclick_edge.commands.train import SegCall, run_seg

    run_seg(
        SegCall(
            data=data,
            out=out,
            products=tuple(product or ()),
            preset=preset,
            backbone=backbone,
            backbone_weights=backbone_weights,
            steps=steps,
            batch=batch,
            learning_rate=learning_rate,
            real_defects=real_defects,
            labels=labels,
            skip_kinds=tuple(skip_kind or ()),
            flip=flip,
            seed=seed,
            validate_every=validate_every,
            device=device,
            mixed_precision=mixed_precision,
            split_normals=split_normals,
        )
    )


@train_app.command("clicks")
def train_clicks(
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run there is gone on with.")],
    data: Annotated[list[Path] | None, typer.Option(help="Data sets to learn from, all products, all labels.")] = None,
    leave_out: Annotated[list[str] | None, typer.Option(help="Products never to see: those to test on.")] = None,
    skip_kind: Annotated[list[str] | None, typer.Option(help="Kinds of defect not to train on.")] = None,
    worlds: Annotated[int, typer.Option(min=0, help="Procedural products to learn from.")] = 200,
    start_from: Annotated[Path | None, typer.Option(help="Start from this run's best weights.")] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="Leave out residual, words or previous, to see what it brings.")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="Where prepared pictures are kept, for several runs; default: in the run.")
    ] = None,
    preset: str = "edge-s",
    backbone: Annotated[str | None, typer.Option(help="Another backbone than the preset's.")] = None,
    backbone_weights: Annotated[Path | None, typer.Option(help="Its weights; default: the shipped ones.")] = None,
    steps: Annotated[int, typer.Option(min=1)] = 3000,
    learning_rate: float = 1e-3,
    seed: int = 0,
    validate_every: Annotated[int, typer.Option(min=1)] = 300,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    mixed_precision: Annotated[bool, typer.Option(help="bfloat16 where it is safe.")] = False,
) -> None:
    """Train ADClick, clicks and words to masks, on procedural products and labelled ones. Goes on after a stop."""
    from adclick_edge.commands.train_clicks import ClicksCall, run_clicks

    run_clicks(
        ClicksCall(
            out=out,
            data=tuple(data or ()),
            leave_out=tuple(leave_out or ()),
            skip_kinds=tuple(skip_kind or ()),
            worlds=worlds,
            start_from=start_from,
            without=tuple(without or ()),
            samples=samples,
            preset=preset,
            backbone=backbone,
            backbone_weights=backbone_weights,
            steps=steps,
            learning_rate=learning_rate,
            seed=seed,
            validate_every=validate_every,
            device=device,
            mixed_precision=mixed_precision,
        )
    )


@app.command()
def label(
    bundle: Path,
    data: Data,
    out: Annotated[Path, typer.Option(help="Label folder to write, or to go on with: OUT/PRODUCT/KIND/NAME_mask.png.")],
    product: ProductName = None,
    clicks: Annotated[int, typer.Option(min=1, max=24, help="Clicks on each picture.")] = 5,
    per_kind: Annotated[int, typer.Option(min=1, help="Defects per kind to label, chosen by content.")] = 10,
    skip_kind: Annotated[list[str] | None, typer.Option(help="Kinds of defect to leave out.")] = None,
    words: Annotated[bool, typer.Option(help="Name the kind of defect, where the bundle knows it.")] = False,
    mirrored: Annotated[
        bool, typer.Option(help="Answer from the frame and its mirrorings: better masks, four times the work.")
    ] = True,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; default: all cores.")] = None,
) -> None:
    """Masks of real defects from clicks, for `adclick train seg --labels`. A robot clicks, by the ground truth."""
    from adclick_edge.commands.label import LabelCall, run

    run(
        LabelCall(
            bundle=bundle,
            data=data,
            product=product,
            out=out,
            clicks=clicks,
            per_kind=per_kind,
            skip_kinds=tuple(skip_kind or ()),
            words=words,
            mirrored=mirrored,
            threads=threads,
        )
    )


@app.command()
def export(
    run_folder: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A training run; omit with --backbone-weights.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The bundle to write.")] = Path("bundle"),
    product: ProductName = None,
    backbone_weights: Annotated[
        Path | None, typer.Option(help="Export this backbone, with no trained segmenter.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Name of that backbone; default: the preset's.")] = None,
    preset: str = "edge-s",
    weights_license: Annotated[str, typer.Option(help="Licence of the weights, for the manifest.")] = "unknown",
    base: Annotated[
        Path | None, typer.Option(help="For a run of clicks: the bundle that gets its graphs; default: fresh weights.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Export to ONNX, through the parity gate (needs adclick-edge[train])."""
    from adclick_edge.commands.export import run

    run(run_folder, out, product, backbone_weights, backbone, preset, weights_license, base, json_output)


@app.command()
def calibrate(
    bundle: Path,
    normals: Annotated[Path, typer.Option(help="Folder of normal pictures that are not in the bank.")],
    false_alarms: Annotated[
        float, typer.Option(min=1e-6, max=0.5, help="Share of normal frames that may be called ng.")
    ] = 0.01,
    defects: Annotated[
        Path | None, typer.Option(help="Folder of defective pictures, for the bound on missed ones.")
    ] = None,
    missed_defects: Annotated[
        float, typer.Option(min=1e-6, max=0.5, help="Share of defects that may be called ok.")
    ] = 0.05,
    author: Annotated[str, typer.Option(help="Who sets the thresholds, for the record.")] = "",
    json_output: Json = False,
) -> None:
    """Set a product's thresholds from held-out pictures."""
    from adclick_edge.commands.calibrate import run

    run(bundle, normals, false_alarms, defects, missed_defects, author, json_output)


@app.command()
def inspect(
    bundle: Path,
    images: Annotated[Path, typer.Argument(metavar="IMAGE_OR_FOLDER")],
    json_output: Json = False,
    overlay: Annotated[Path | None, typer.Option(help="Folder for pictures with the heat map drawn over them.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; default: all cores.")] = None,
) -> None:
    """Judge pictures: ok, ng, uncertain, or not_inspected with its reason."""
    from adclick_edge.commands.inspect import run

    run(bundle, images, json_output, overlay, threads)


@app.command("eval")
def evaluate(
    bundle: Path,
    data: Data,
    product: ProductName = None,
    skip_kind: Annotated[list[str] | None, typer.Option(help="Kinds of defect to leave out.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for an HTML page with curves and the worst pictures.")
    ] = None,
    json_output: Json = False,
    split_normals: SplitNormals = None,
) -> None:
    """Score a bundle on a product's test pictures."""
    from adclick_edge.commands.evaluate import run

    run(bundle, data, product, tuple(skip_kind or ()), report, json_output, split_normals)


@app.command("eval-clicks")
def eval_clicks(
    bundle: Path,
    data: Data,
    product: ProductName = None,
    clicks: Annotated[int, typer.Option(min=1, max=24, help="Clicks on each defect.")] = 5,
    skip_kind: Annotated[list[str] | None, typer.Option(help="Kinds of defect to leave out.")] = None,
    words: Annotated[bool, typer.Option(help="Name the kind of defect, where the bundle knows it.")] = False,
    mirrored: Annotated[
        bool, typer.Option(help="Answer from the frame and its mirrorings: better masks, four times the work.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Click on so many defects only, at even distances.")] = None,
    one_shot_per_defect: Annotated[
        bool, typer.Option("--one-shot-per-defect", help="Of a defect shot several times, only the first shot.")
    ] = False,
    noc: Annotated[bool, typer.Option(help="Go on to 20 clicks or an IoU of 0.90, for NoC.")] = True,
    baselines: Annotated[bool, typer.Option(help="Also score GrabCut and feature clicks.")] = True,
    report: Annotated[Path | None, typer.Option(help="Folder for plot and pictures; default: PRODUCT_clicks.")] = None,
    json_output: Json = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; default: all cores.")] = None,
) -> None:
    """Score clicks to masks: a robot that knows the truth clicks on defects, beside classical baselines."""
    from adclick_edge.commands.eval_clicks import EvalClicksCall, run

    run(
        EvalClicksCall(
            bundle=bundle,
            data=data,
            product=product,
            clicks=clicks,
            skip_kinds=tuple(skip_kind or ()),
            words=words,
            mirrored=mirrored,
            limit=limit,
            one_shot_per_defect=one_shot_per_defect,
            noc=noc,
            baselines=baselines,
            report=report,
            json_output=json_output,
            threads=threads,
        )
    )


@app.command()
def regions(
    bundle: Path,
    set_file: Annotated[Path | None, typer.Option("--set", help='JSON file: {"roi": [...], "ignore": [...]}.')] = None,
) -> None:
    """Show or set where a product is inspected: polygons of (x, y) as fractions of the frame."""
    from adclick_edge.commands.regions import run

    run(bundle, set_file)


@demo_app.command("line")
def demo_line(root: Annotated[Path, typer.Argument(metavar="DIR", help="Where to put everything.")]) -> None:
    """Sample line, banks, thresholds, verdicts, overlays: offline, a minute."""
    from adclick_edge.commands.demo import run

    run(root)


TextModel = Annotated[
    Path, typer.Option(help="Folder of a text encoder in transformers' layout, such as all-MiniLM-L6-v2.")
]


@words_app.command("vectors")
def words_vectors(
    model: TextModel,
    out: Annotated[Path, typer.Option(help="The table to write, such as prompts.json.")],
    data: Annotated[Path | None, typer.Option(help="A data set whose products and kinds to add.")] = None,
    json_output: Json = False,
) -> None:
    """Encode the known kinds of defect, so that an edge box needs no text encoder for them."""
    from adclick_edge.commands.words import run_vectors

    run_vectors(model, out, data, json_output)


@words_app.command("export")
def words_export(
    model: TextModel,
    out: Annotated[Path, typer.Option(help="Folder for the copy.")],
    json_output: Json = False,
) -> None:
    """Copy a text encoder to ONNX, checked against the original; for free text on a box without torch."""
    from adclick_edge.commands.words import run_export

    run_export(model, out, json_output)


def main() -> None:
    try:
        app()
    except AdclickError as error:
        progress_console().print(f"error: {error}", style="bold red", markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        # A full disk, a folder that may not be written: the message of the system names the file.
        progress_console().print(f"error: {error}", style="bold red", markup=False, soft_wrap=True)
        sys.exit(1)
