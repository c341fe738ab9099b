# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Lines of text below a picture."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

NARROWEST = 320  # pixels; smaller pictures are drawn larger
LETTERS = 0.05  # height of letters, of the width of the drawing


def with_lines(image: np.ndarray, lines: list[str]) -> np.ndarray:
    """Returns a picture with whole lines of text below it.

    Args:
        image: (H, W, 3), RGB, uint8.
        lines: The text; letters shrink until the longest fits.

    Returns:
        Array (H', W', 3), RGB, uint8.
    """
    drawn = Image.fromarray(image)
    if drawn.width < NARROWEST:
        height = round(drawn.height * NARROWEST / drawn.width)
        drawn = drawn.resize((NARROWEST, height), Image.Resampling.BICUBIC)
    size, pad = LETTERS * drawn.width, round(LETTERS * drawn.width / 2)
    font = ImageFont.load_default(size)
    widest = max((font.getlength(line) for line in lines), default=1)
    room = drawn.width - 2 * pad
    if widest > room:
        size *= room / widest
        font = ImageFont.load_default(size)
    pitch = round(1.4 * size)
    sheet = Image.new(
        'RGB', (drawn.width, drawn.height + pitch * len(lines) + pad), 'white'
    )
    sheet.paste(drawn, (0, 0))
    pen = ImageDraw.Draw(sheet)
    for i, line in enumerate(lines):
        top = drawn.height + pad // 2 + i * pitch
        pen.text((pad, top), line, fill='black', font=font)
    return np.asarray(sheet)
