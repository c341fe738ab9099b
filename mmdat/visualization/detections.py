# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Detections beside the truth, many pictures on one sheet."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from pycocotools.coco import COCO

from .figures import save

COLUMNS = 2  # pictures in a row, each beside its truth


def _draw(
    axes: Axes, image: Image.Image, title: str, coco: COCO, found: list[Any]
) -> None:
    """One picture with boxes, masks, class names and scores."""
    axes.imshow(image)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
    if not found:
        axes.text(
            0.5,
            0.5,
            'none',
            transform=axes.transAxes,
            ha='center',
            va='center',
            fontsize=11,
            color='white',
            bbox=dict(facecolor='black', edgecolor='none', alpha=0.6),
        )
    colours = matplotlib.colormaps['tab10']
    for instance in found:
        colour = colours(instance['category_id'] % 10)
        left, top, width, height = instance['bbox']
        axes.add_patch(
            Rectangle(
                (left, top), width, height, fill=False, lw=1.5, ec=colour
            )
        )
        mask = coco.annToMask(instance).astype(bool)
        veil = np.zeros((*mask.shape, 4))
        veil[mask] = (*colour[:3], 0.5)
        axes.imshow(veil)
        text = coco.cats[instance['category_id']]['name']
        if 'score' in instance:
            text += f' {instance["score"]:.2f}'
        low = top < 0.07 * image.height  # no room above the box
        axes.text(
            left,
            top + 2 if low else top - 2,
            text,
            va='top' if low else 'bottom',
            fontsize=8,
            color='white',
            clip_on=True,
            bbox=dict(facecolor=colour, edgecolor='none', pad=1),
        )


def draw_sheet(
    annotations: str | Path,
    predictions: str | Path,
    images: str | Path,
    out: str | Path,
    count: int = 8,
    score: float = 0.3,
) -> Path:
    """Draws truth and predictions side by side, for several pictures.

    Args:
        annotations: COCO's JSON of the truth.
        predictions: COCO's JSON of results, with masks.
        images: Folder of the pictures.
        out: The picture to write; its suffix is its format.
        count: How many pictures, spread over the data set.
        score: Predictions below this score are left out.

    Returns:
        The path of the picture.
    """
    truth = COCO(str(annotations))
    listed = json.loads(Path(predictions).read_text())
    # COCO's reader takes no empty list.
    result = truth.loadRes(listed) if listed else None
    ids = sorted(truth.getImgIds())
    chosen = [ids[i * len(ids) // count] for i in range(min(count, len(ids)))]
    rows = -(-len(chosen) // COLUMNS)
    figure = Figure(figsize=(5.2 * COLUMNS, 2.8 * rows), layout='constrained')
    grid = figure.subplots(rows, 2 * COLUMNS, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for i, image_id in enumerate(chosen):
        name = truth.imgs[image_id]['file_name']
        with Image.open(Path(images) / name) as file:
            image = file.convert('RGB')
        found = []
        if result is not None:
            found = result.loadAnns(result.getAnnIds(imgIds=[image_id]))
        found = [one for one in found if one['score'] >= score]
        known = truth.loadAnns(truth.getAnnIds(imgIds=[image_id]))
        _draw(grid[2 * i], image, f'{name}: truth', truth, known)
        _draw(grid[2 * i + 1], image, 'predictions', truth, found)
    return save(figure, out)
