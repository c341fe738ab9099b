# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""How points move from checkpoint to checkpoint."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.animation import (
    AbstractMovieWriter,
    FFMpegWriter,
    PillowWriter,
)
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..utils.errors import UserError
from .drawing import draw_points
from .figures import block_title, panel_width, points_scale
from .legends import DISPLACEMENT, add_legends
from .picture import INIT
from .recorder import BlockRecord


class OnePaletteWriter(PillowWriter):
    """Writes a GIF whose frames share their colours.

    With a palette for each frame, what does not move would flicker.
    """

    def finish(self) -> None:
        """Chooses the palette from a few frames and writes all of them."""
        frames = [frame.convert('RGB') for frame in self._frames]
        some = frames[:: max(len(frames) // 4, 1)] + frames[-1:]
        sample = Image.new('RGB', (some[0].width, some[0].height * len(some)))
        for i, frame in enumerate(some):
            sample.paste(frame, (0, i * frame.height))
        palette = sample.quantize(255)
        first, *rest = (
            frame.quantize(palette=palette, dither=Image.Dither.NONE)
            for frame in frames
        )
        first.save(
            self.outfile,
            save_all=True,
            append_images=rest,
            duration=int(1000 / self.fps),
            loop=0,
            optimize=False,
        )


def find_checkpoints(sources: Sequence[str | Path]) -> list[Path]:
    """The checkpoints of a training in the order they were written.

    Args:
        sources: Files, which are kept in the order given, and work dirs,
            whose ``epoch_*.pth`` and ``iter_*.pth`` are taken by number.
            ``init`` stands for the weights before training.

    Raises:
        UserError: A source does not exist, or a folder has no checkpoints.
    """
    found: list[Path] = []
    for source in map(Path, sources):
        if source.is_file() or str(source) == INIT:
            found.append(source)
            continue
        if not source.is_dir():
            raise UserError(
                f'There is no checkpoint or work dir {source} (looked for '
                f'{source.absolute()}); check the path.'
            )
        numbered = {
            int(match[1]): path
            for path in source.glob('*.pth')
            if (match := re.fullmatch(r'(?:epoch|iter)_(\d+)', path.stem))
        }
        if not numbered:
            raise UserError(
                f'{source} has no checkpoints named epoch_N.pth or '
                f'iter_N.pth; name the files, or train with '
                f'default_hooks.checkpoint.max_keep_ckpts=-1 to keep them.'
            )
        found += [numbered[number] for number in sorted(numbered)]
    return found


def writer_for(out: str | Path, fps: float) -> AbstractMovieWriter:
    """The writer of a GIF or, if ffmpeg is installed, an MP4.

    Raises:
        UserError: The suffix is not supported, or ffmpeg is missing.
    """
    suffix = Path(out).suffix.lower()
    if suffix == '.gif':
        return OnePaletteWriter(fps=fps)
    if suffix != '.mp4':
        raise UserError(f'A movie must be a .gif or .mp4 file; got {out}.')
    if not FFMpegWriter.isAvailable():
        raise UserError(
            f'{out} needs the program ffmpeg, which is not installed here; '
            f'install it, or name a .gif file.'
        )
    return FFMpegWriter(
        fps=fps, codec='h264', extra_args=['-pix_fmt', 'yuv420p']
    )


def make_movie(
    image: np.ndarray,
    frames: Sequence[tuple[str, Sequence[BlockRecord]]],
    out: str | Path,
    group: int | None = None,
    fps: float = 2,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Path:
    """Draws one frame for each checkpoint.

    Colours mean the same in all frames. A line shows where each point was in
    the frame before; in the first frame it starts at the reference point.

    Args:
        image: The picture (H, W, 3), RGB, uint8.
        frames: A title and the records of the same blocks, for each
            checkpoint.
        out: The file to write, ``.gif`` or ``.mp4``.
        group: The group of heads to draw, None for all.
        fps: Frames per second.
        progress: Wraps the frames, to show progress.

    Returns:
        The path of the movie.
    """
    writer = writer_for(out, fps)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    scale = points_scale(
        image, [(record, group) for _, records in frames for record in records]
    )
    count = len(frames[0][1])
    shape = image.shape[0] / image.shape[1]
    width = panel_width(count, shape)
    figure = Figure(
        figsize=(width * count + 0.9, width * shape + 1.1),
        layout='constrained',
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, count, squeeze=False)[0]
    before: list[np.ndarray | None] = [None] * count
    with writer.saving(figure, str(out), dpi=110):
        for number, (title, records) in enumerate(progress(frames)):
            for i, (axes, record) in enumerate(zip(panels, records)):
                axes.clear()
                colours = draw_points(
                    axes, image, record, group, scale=scale, trail_xy=before[i]
                )
                axes.set_title(block_title(record), fontsize=9, pad=3)
                before[i] = record.points_xy[0].numpy()
            figure.suptitle(title, fontsize=10)
            if number == 0:
                add_legends(
                    figure, panels, panels[0], colours, scale, DISPLACEMENT
                )
            writer.grab_frame()
    return out
