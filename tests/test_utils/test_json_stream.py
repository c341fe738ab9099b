# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The stream gives what json gives, in pieces of any size."""

import json
import random

import pytest

from mmdat.utils import json_stream
from mmdat.utils.json_stream import DamagedJSON, JSONStream

NUMBERS = [1.5, -2, 3e-7, 4, 5.25, 6, 70.125, 8.5]


def document():
    annotations = [
        dict(id=i, segmentation=[NUMBERS * (1 + i % 3)], bbox=[1, 2, 3.5, i])
        for i in range(40)
    ]
    annotations[3]['segmentation'] = dict(counts=[5] * 40, size=[10, 20])
    annotations[5]['note'] = 'brackets ] [ } { , \\" and ünïcode'
    return dict(
        info=dict(a=[1, 2, dict(b=None)], text='"images": ['),
        images=[dict(id=i, file_name=f'{i} [x].jpg') for i in range(9)],
        annotations=annotations,
        licenses=[],
        categories=[dict(id=1, name='a]')],
        number=12345678,
    )


def read(path, shortened=()):
    found = {key: [] for key in ('images', 'annotations', 'categories')}
    entries = {key: found[key].append for key in found}
    keys = JSONStream(path, entries, shortened).keys
    return found, keys


@pytest.mark.parametrize('chunk', [1, 7, 64, 1 << 20])
@pytest.mark.parametrize('indent', [None, 2])
def test_everything_is_read(chunk, indent, tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, '_CHUNK', chunk)
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(document(), indent=indent))
    found, keys = read(path)
    whole = document()
    assert found == {key: whole[key] for key in found}
    assert {k: v for k, v in keys.items() if k not in found} == {
        k: v for k, v in whole.items() if k not in found
    }


@pytest.mark.parametrize('chunk', [1000, 1 << 20])
def test_long_lists_become_their_length(chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, '_CHUNK', chunk)
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(document(), ensure_ascii=False))
    found, _ = read(path, ('annotations',))
    whole = document()
    assert found['images'] == whole['images']
    for seen, true in zip(found['annotations'], whole['annotations']):
        parts = true.pop('segmentation')
        if isinstance(parts, list):
            parts = [str(len(part)) for part in parts]
        assert seen.pop('segmentation') == parts and seen == true
    assert len(found['annotations']) == 40


def test_an_empty_list_and_an_empty_object(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text('{"images": [ ], "annotations":[]}  \n')
    assert read(path)[0]['images'] == []
    path.write_text(' {} ')
    assert read(path)[1] == {}


def test_whatever_breaks_off_is_noticed(tmp_path):
    text = json.dumps(document())
    path = tmp_path / 'a.json'
    draw = random.Random(0)
    for _ in range(100):
        path.write_text(text[: draw.randrange(len(text))])
        with pytest.raises(DamagedJSON):
            read(path, ('annotations',))


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (('"id": 7', '"id": }'), "in entry 7 of 'annotations'"),
        (('}, {"id": 9', '} {"id": 9'), 'a comma or bracket is missing'),
        (('"licenses": ', '"licenses" '), "colon after 'licenses'"),
        (('12345678}', '12345678} x'), 'has text after its end'),
        (('{"info"', '["info"'), 'holds a list'),
        (('{"info"', '<html>'), "starts with '<'"),
        (('12345678}', '12345678'), 'is truncated'),
    ],
    ids=lambda value: str(value[-1]),
)
def test_damage_is_located(change, said, tmp_path):
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(dict(document(), images=[])).replace(*change))
    with pytest.raises(DamagedJSON, match=said):
        read(path)
