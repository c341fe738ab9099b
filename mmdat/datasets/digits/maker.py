# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Making the whole data set, reproducibly and atomically."""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from .ade20k import SPLITS, write_labels
from .coco import CocoWriter
from .glyphs import CLASSES, load_glyphs
from .photographs import PHOTOGRAPHS, background, load_photographs
from .scene import make_scene

MANIFEST = 'manifest.json'


@dataclass(frozen=True)
class DigitsOptions:
    """What a data set is made of.

    Attributes:
        train: Pictures to train on.
        val: Pictures to validate on.
        size: Side of a picture, in pixels.
        digits: Fewest and most digits in a picture.
        share: Smallest and largest height of a digit over `size`.
        crops: Single-digit pictures per class and split for classification;
            validation gets a quarter.
        crop_size: Side of these, in pixels.
        crop_share: Smallest and largest height of their digit over
            `crop_size`.
        crop_brightness: Of the photograph behind their digit, 1 as it is, 0
            black.
        seed: Random seed.
    """

    train: int = 2000
    val: int = 200
    size: int = 192
    digits: tuple[int, int] = (2, 5)
    share: tuple[float, float] = (0.2, 0.4)
    crops: int = 40
    crop_size: int = 64
    crop_share: tuple[float, float] = (0.5, 0.75)
    crop_brightness: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for sizes and numbers that make no data set."""
        for name in ('train', 'val', 'crops'):
            if getattr(self, name) < 1:
                raise ValueError(
                    f'{name} must be at least 1; got {getattr(self, name)}.'
                )
        for name in ('size', 'crop_size'):
            if getattr(self, name) < 32:
                raise ValueError(
                    f'{name} must be at least 32 pixels; got '
                    f'{getattr(self, name)}.'
                )
        low, high = self.crop_share
        if not 0 < low <= high <= 1:
            raise ValueError(
                f'crop_share must be two rising shares above 0 and at most '
                f'1; got {low} and {high}.'
            )
        if not 0 <= self.crop_brightness <= 1:
            raise ValueError(
                f'crop_brightness must be from 0 to 1; got '
                f'{self.crop_brightness}.'
            )


def make_digits(root: str | Path, options: DigitsOptions) -> Path:
    """Makes the data set, unless it is there already.

    The folder gets ``coco/`` (pictures, boxes, masks), ``ade/`` (the same
    pictures with label PNGs), ``imagenet/`` (folders of single digits) and
    ``manifest.json``. It is built under a temporary name and renamed at the
    end, so an incomplete data set never has the final name.

    Args:
        root: Folder to make.
        options: What to make.

    Returns:
        The folder.

    Raises:
        FileExistsError: `root` exists and is not this data set.
    """
    root = Path(root)
    wanted = _plain(options)
    if root.exists():
        manifest = root / MANIFEST
        if manifest.is_file():
            found = json.loads(manifest.read_text()).get('options')
            # A data set made before an option existed has its default.
            if isinstance(found, dict):
                found = {**_plain(DigitsOptions()), **found}
            if found == wanted:
                return root
            raise FileExistsError(
                f'{root} holds a digits data set made with {found}, not '
                f'{wanted}; remove it or choose another folder.'
            )
        if not root.is_dir() or any(root.iterdir()):
            raise FileExistsError(
                f'{root} exists and is not a digits data set; choose another '
                f'folder.'
            )
        root.rmdir()
    root.parent.mkdir(parents=True, exist_ok=True)
    building = root.with_name(f'.{root.name}.{os.getpid()}.part')
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir()
        for split in ('train', 'val'):
            _make_scenes(building, split, options)
            _make_crops(building, split, options)
        (building / MANIFEST).write_text(
            json.dumps(dict(options=wanted, classes=CLASSES), indent=1)
        )
        building.rename(root)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return root


def _plain(options: DigitsOptions) -> dict[str, object]:
    """Options as JSON has them, tuples as lists."""
    return json.loads(json.dumps(asdict(options)))


def _rng(options: DigitsOptions, *what: object) -> np.random.Generator:
    """A generator for one picture, whatever was made before it."""
    name = repr((options.seed, *what)).encode()
    return np.random.default_rng(
        int.from_bytes(hashlib.sha256(name).digest()[:8], 'big')
    )


def _write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    if not cv2.imwrite(str(path), bgr, [cv2.IMWRITE_JPEG_QUALITY, 95]):
        raise OSError(f'Could not write {path}; is the disk full?')


def _make_scenes(root: Path, split: str, options: DigitsOptions) -> None:
    """Pictures with several digits, for detection and segmentation."""
    photographs, glyphs = load_photographs(split), load_glyphs(split)
    names = sorted(photographs)
    coco = CocoWriter(
        dict(
            description='Handwritten digits on photographs',
            split=split,
            photographs=sorted(PHOTOGRAPHS[split]),
        )
    )
    sizes = tuple(share * options.size for share in options.share)
    images = root / 'coco' / f'{split}2017'
    for index in tqdm(
        range(getattr(options, split)), desc=f'{split} pictures', unit='img'
    ):
        rng = _rng(options, 'scene', split, index)
        name = names[int(rng.integers(len(names)))]
        count = int(rng.integers(options.digits[0], options.digits[1] + 1))
        chosen = rng.choice(len(glyphs), count, replace=False)
        scene = make_scene(
            background(photographs[name], options.size, rng),
            [glyphs[i] for i in chosen],
            sizes,
            rng,
        )
        stem = f'{index:06d}'
        _write(images / f'{stem}.jpg', scene.image)
        coco.add(f'{stem}.jpg', options.size, name, scene.instances)
        twin = root / 'ade' / 'images' / SPLITS[split] / f'{stem}.jpg'
        twin.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(images / f'{stem}.jpg', twin)
        write_labels(root / 'ade', split, stem, scene)
    coco.save(root / 'coco' / 'annotations' / f'instances_{split}2017.json')


def _make_crops(root: Path, split: str, options: DigitsOptions) -> None:
    """Pictures of one digit, in a folder per class."""
    photographs, glyphs = load_photographs(split), load_glyphs(split)
    names = sorted(photographs)
    sizes = tuple(share * options.crop_size for share in options.crop_share)
    each = options.crops if split == 'train' else max(options.crops // 4, 1)
    for label in tqdm(
        range(len(CLASSES)), desc=f'{split} classes', unit='class'
    ):
        own = [glyph for glyph in glyphs if glyph.label == label]
        for index in range(each):
            rng = _rng(options, 'crop', split, label, index)
            name = names[int(rng.integers(len(names)))]
            behind = background(photographs[name], options.crop_size, rng)
            if options.crop_brightness < 1:
                behind = (behind * options.crop_brightness).astype(np.uint8)
            scene = make_scene(
                behind, [own[int(rng.integers(len(own)))]], sizes, rng
            )
            folder = root / 'imagenet' / split / CLASSES[label]
            _write(folder / f'{index:04d}.jpg', scene.image)
