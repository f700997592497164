"""Evaluate a checkpoint on a set of shots: PSNR, SSIM and LPIPS of each shot, and their means."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from experiments.evaluation.evaluate import read_evaluation_set
from wan_vae.cli import main, options
from wan_vae.io.atomic_output import check_distinct, check_output, written_beside

app = typer.Typer(name="evaluate", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def evaluate(
    bench: Annotated[
        Path, typer.Argument(help="The shots: a YAML file such as experiments/evaluation/configs/bench.yaml.")
    ],
    clips: Annotated[Path, typer.Option(help="The folder that the clips are in.")],
    checkpoint: options.CheckpointOption = options.DEFAULT_CHECKPOINT,
    backbone: Annotated[
        Path | None, typer.Option(help="torchvision's AlexNet, for LPIPS, which is left out without it.")
    ] = None,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result here, for machines.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the result here, for a model card.")] = None,
    sheets: Annotated[Path | None, typer.Option(help="A new folder for a contact sheet of every shot.")] = None,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Reconstruct every shot that BENCH lists, and print how close the frames are to the clips'."""
    listed = read_evaluation_set(bench, clips)
    outputs = [path for path in (json_file, markdown, sheets) if path is not None]
    inputs = [bench, Path(checkpoint), *(shot.clip for shot in listed.shots), *([] if backbone is None else [backbone])]
    for path in outputs:
        check_output(path, overwrite=overwrite, inputs=tuple(inputs), may_be_folder=path == sheets)
    check_distinct(*outputs)

    import torch
    from tqdm import tqdm

    from experiments.evaluation.evaluate import evaluate_shot, markdown_table, summary
    from wan_vae.benchmark.record import code_version
    from wan_vae.cli.common import load_model
    from wan_vae.evaluation.lpips import LPIPS
    from wan_vae.validation import Dtypes

    lpips = None if backbone is None else LPIPS("alex", backbone)
    vae = load_model(checkpoint, device=device, dtype=dtype)
    on = vae.device
    if lpips is not None:
        lpips.to(on)
    about = {
        "checkpoint": Path(checkpoint).name,
        "digest": vae.digest(),
        "device": torch.cuda.get_device_name(on) if on.type == "cuda" else on.type,
        "dtype": str(Dtypes(vae.dtype, vae.decoder_dtype)),
        "torch": torch.__version__,
        "wan_vae": code_version(),
    }
    with ExitStack() as written:
        folder = None
        if sheets is not None:
            folder = written.enter_context(written_beside(sheets, overwrite=overwrite))
            folder.mkdir()
        results = [
            evaluate_shot(
                vae,
                shot,
                listed.short_side,
                lpips=lpips,
                sheet=None if folder is None else folder / f"{shot.name}.png",
            )
            for shot in tqdm(listed.shots, unit="shot", disable=None, leave=False)
        ]
        text = (
            f"{markdown_table(results)}\n`{about['checkpoint']}` in {about['dtype']} on {about['device']}, torch"
            f" {about['torch']}.{'' if lpips else ' LPIPS was not measured, for no --backbone was given.'}\n"
        )
        if markdown is not None:
            written.enter_context(written_beside(markdown, overwrite=overwrite)).write_text(text, encoding="utf-8")
        if json_file is not None:
            values = json.dumps({**about, **summary(results)}, indent=2)
            written.enter_context(written_beside(json_file, overwrite=overwrite)).write_text(
                values + "\n", encoding="utf-8"
            )
    typer.echo(text, nl=False)


if __name__ == "__main__":
    main(program=app)
