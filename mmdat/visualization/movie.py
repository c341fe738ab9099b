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
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ..utils.errors import UserError
from .drawing import draw_points
from .figures import DISPLACEMENT, block_title, panel_width
from .recorder import BlockRecord


def find_checkpoints(sources: Sequence[str | Path]) -> list[Path]:
    """The checkpoints of a training in the order they were written.

    Args:
        sources: Files, which are kept in the order given, and work dirs,
            whose ``epoch_*.pth`` and ``iter_*.pth`` are taken by number.

    Raises:
        UserError: A source does not exist, or a folder has no checkpoints.
    """
    found: list[Path] = []
    for source in map(Path, sources):
        if source.is_file():
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
    """What writes a GIF or, where ffmpeg is installed, an MP4.

    Raises:
        UserError: The suffix is another, or there is no ffmpeg.
    """
    suffix = Path(out).suffix.lower()
    if suffix == '.gif':
        return PillowWriter(fps=fps)
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

    Colours keep their meaning through the movie, and a line shows where each
    point was in the frame before, in the first one its reference point.

    Args:
        image: The picture (H, W, 3), RGB, uint8.
        frames: A title and the records of the same blocks, for each
            checkpoint.
        out: The file to write, ``.gif`` or ``.mp4``.
        group: The group of heads to draw, None for all.
        fps: Frames per second.
        progress: Wraps the frames, to show how far it got.

    Returns:
        The path of the movie.
    """
    writer = writer_for(out, fps)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    moved = max(
        float(record.displacement[0].max())
        for _, records in frames
        for record in records
    )
    norm = Normalize(0, max(moved, 1e-6))
    count = len(frames[0][1])
    shape = image.shape[0] / image.shape[1]
    width = panel_width(count, shape)
    figure = Figure(
        figsize=(width * count + 0.9, width * shape + 0.6),
        layout='constrained',
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, count, squeeze=False)[0]
    bar = None
    before: list[np.ndarray | None] = [None] * count
    with writer.saving(figure, str(out), dpi=110):
        for title, records in progress(frames):
            for i, (axes, record) in enumerate(zip(panels, records)):
                axes.clear()
                colours = draw_points(
                    axes, image, record, group, norm=norm, trail_xy=before[i]
                )
                axes.set_title(block_title(record), fontsize=9, pad=3)
                before[i] = record.points_xy[0].numpy()
            if bar is None:
                bar = figure.colorbar(colours, ax=panels, aspect=25, pad=0.01)
                bar.set_label(DISPLACEMENT, fontsize=9)
            figure.suptitle(title, fontsize=10)
            writer.grab_frame()
    return out
