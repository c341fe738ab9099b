# Copyright (c) mmdat contributors. Apache-2.0 licence.
import io
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.dataset import Compose
from PIL import Image

from mmdat.engine.hooks import NameDataHook, name_data
from mmdat.engine.whole_pictures import check_whole


def encoded(kind, **options):
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_what_breaks_off_is_noticed(kind, tmp_path):
    content, path = encoded(kind), tmp_path / 'picture'
    for cut in np.linspace(10, len(content) - 9, 20).astype(int):
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match='is truncated'):
            check_whole(str(path))


@pytest.mark.parametrize(
    ('kind', 'options'),
    [
        ('JPEG', {}),
        ('JPEG', dict(progressive=True)),
        ('PNG', {}),
        ('WEBP', {}),
        ('BMP', {}),
    ],
)
@pytest.mark.parametrize('more', [b'', b'trailing bytes'])
def test_whole_pictures_pass(kind, options, more, tmp_path):
    path = tmp_path / 'picture'
    path.write_bytes(encoded(kind, **options) + more)
    check_whole(str(path))


def test_what_is_no_file_is_left_alone():
    check_whole('s3://bucket/picture.jpg')


def test_a_training_names_it_whatever_opencv_does(monkeypatch, tmp_path):
    """With a pipeline that would have taken the part that is there."""
    path = tmp_path / 'picture.jpg'
    path.write_bytes(encoded('JPEG')[:-30])
    dataset = SimpleNamespace(pipeline=Compose([lambda data: data]))
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset))
    NameDataHook().before_run(
        SimpleNamespace(_train_loop=loop, _val_loop=None, _test_loop=None)
    )
    monkeypatch.setattr(name_data, 'is_needed', lambda: True)
    with pytest.raises(RuntimeError, match=f'{path} cannot .* is truncated'):
        dataset.pipeline(dict(img_path=str(path)))
