"""`wan-vae reconstruct`: a clip to latents and back, to see and to measure what the model keeps."""

import logging
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from wan_vae.cli import options
from wan_vae.cli.budget import AUTO, budgets_of_streams
from wan_vae.cli.common import Progress, peak_memory, print_result
from wan_vae.cli.distributed import Crew, follows
from wan_vae.errors import UserError
from wan_vae.io.atomic_output import check_distinct, check_output, written_beside


def reconstruct(
    clip: Annotated[Path, typer.Argument(help="A video, an animation, an image, or a folder of images.")],
    out: Annotated[Path, typer.Argument(help="The clip to write: mp4, mkv, webm, mov, avi, gif, webp, or a folder.")],
    checkpoint: options.CheckpointOption = options.DEFAULT_CHECKPOINT,
    device: options.DeviceOption = options.Device.auto,
    dtype: options.DtypeOption = options.Precision.auto,
    shards: options.ShardsOption = 1,
    memory: options.MemoryOption = AUTO,
    size: options.SizeOption = None,
    frames: options.FramesOption = None,
    fps: options.FpsOption = None,
    lossless: options.LosslessOption = False,
    side_by_side: Annotated[
        Path | None, typer.Option(help="Also write a clip with the source on the left and OUT on the right.")
    ] = None,
    contact_sheet: Annotated[
        Path | None, typer.Option(help="Also write a PNG of a few frames: source, reconstruction, error.")
    ] = None,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Encode CLIP and decode it again into OUT, and print how close they are.

    PSNR and SSIM compare the decoded frames with the source's, before OUT is compressed. Sound is carried over where
    OUT's format can hold it.
    """
    crew = None if shards == 1 else Crew(shards, device)
    if crew is not None and follows():
        crew.follow(checkpoint, device, dtype)
        return
    if contact_sheet is not None and contact_sheet.suffix.lower() != ".png":
        raise UserError(f"--contact-sheet is {contact_sheet}, but it is a PNG file; name one that ends in .png.")
    outputs = [path for path in (out, side_by_side, contact_sheet) if path is not None]
    for path in outputs:
        check_output(path, overwrite=overwrite, inputs=(clip, Path(checkpoint)), may_be_folder=not path.suffix)
    check_distinct(*outputs)

    import torch

    from wan_vae.cli.common import load_model
    from wan_vae.evaluation import reconstruct as comparison
    from wan_vae.evaluation.contact_sheet import ContactSheet
    from wan_vae.evaluation.metrics import Metrics
    from wan_vae.evaluation.reconstruct import reconstruct_frames
    from wan_vae.io import create_clip

    with (
        options.open_selected(clip, size, frames, fps) as source,
        ExitStack() as written,
        torch.inference_mode(),
    ):
        if source.info.bit_depth > 8:
            logging.getLogger("wan_vae").warning(
                f"{clip} has {source.info.bit_depth} bits a channel; {out} is written with 8."
            )
        model = load_model(checkpoint, device, dtype)
        config, info = model.vae.config, source.info
        if contact_sheet is not None and config.output_upscale != 1:
            raise UserError(
                f"{checkpoint} decodes to {config.output_upscale} times the size, so the source has no pixels for"
                " --contact-sheet to show errors against; take --side-by-side instead."
            )
        width, height = info.width * config.output_upscale, info.height * config.output_upscale
        create = partial(
            create_clip,
            height=height,
            fps=info.fps,
            color=info.color,
            pixel_aspect=info.pixel_aspect,
            lossless=lossless,
            audio=source.audio,
        )
        writer = written.enter_context(create(out, width=width))
        pairs = None
        if side_by_side is not None:
            pairs = written.enter_context(create(side_by_side, width=comparison.side_by_side_width(width)))
        sheet = ContactSheet(info.frames) if contact_sheet is not None else None
        fidelity = Metrics() if config.output_upscale == 1 else None
        progress, count = Progress(info.frames), 0
        vae = model.vae if crew is None else crew.lead(model.vae)
        together = vae.default_chunk_size(info.height, info.width) * config.temporal_compression
        budgets = budgets_of_streams(vae, info.height, info.width, memory)
        chunks = progress.over(source.chunks(together))
        for original, decoded in reconstruct_frames(vae, chunks, width, height, budgets):
            writer.write(decoded[None])
            if pairs is not None:
                pairs.write(comparison.side_by_side(original, decoded)[None])
            if sheet is not None:
                sheet.add(original, decoded)
            if fidelity is not None:
                fidelity.add(original, decoded)
            count += 1
        # Leaving only renames, so that no output stands if another could not be completed.
        writer.finish()
        if pairs is not None:
            pairs.finish()
        if sheet is not None and contact_sheet is not None:
            sheet.save(written.enter_context(written_beside(contact_sheet)))
    if crew is not None:
        crew.leave()
    score = {} if fidelity is None else fidelity.score().to_dict()
    result = {
        "output": out,
        "side_by_side": side_by_side,
        "contact_sheet": contact_sheet,
        "frames": count,
        "size": f"{width}x{height}",
        "fps": info.fps,
        "psnr": score.get("psnr"),
        "ssim": score.get("ssim"),
        "frames_per_second": progress.frames_per_second(),
        "peak_memory": peak_memory(vae.device),
    }
    print_result(result, as_json=as_json)
