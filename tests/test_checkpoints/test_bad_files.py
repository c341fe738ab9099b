# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Damaged and foreign files: a clear sentence or the right weights."""

import builtins
import collections
import copy
import functools
import importlib
import io
import json
import os
import pickle
import subprocess
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer

from mmdat.checkpoints.loading import load_checkpoint_file
from mmdat.engine.weights import check_fits
from mmdat.models import DAT
from mmdat.utils.errors import UserError

TINY = dict(
    embed_dims=8,
    depths=2,
    num_heads=2,
    img_size=32,
    attentions=['ND', 'LS', 'LD', 'DD'],
    window_size=3,
    neighborhood_size=3,
)


def build(**kwargs):
    torch.manual_seed(0)
    return DAT(dict(TINY), **kwargs)


@pytest.fixture(scope='module')
def good():
    """Weights of a model, each unlike what a new model has."""
    torch.manual_seed(7)
    good = {k: torch.randn_like(v) for k, v in build().state_dict().items()}
    good['norm0.bias'][3] = 1.5
    return good


def load(path):
    """A model with the weights of a file, as the commands load them."""
    model = build()
    check_fits(str(path), load_checkpoint_file(path, 'cpu'), model)
    return model


def saved(content, **kwargs):
    file = io.BytesIO()
    torch.save(content, file, **kwargs)
    return file.getvalue()


def prefixed(good, prefix):
    return {prefix + name: value for name, value in good.items()}


def averaged(good):
    """What mmengine's EMAHook leaves: the average, and what it is of."""
    return dict(
        state_dict=good,
        ema_state_dict=dict(
            steps=torch.tensor(9),
            **{f'module.{k}': torch.zeros_like(v) for k, v in good.items()},
        ),
        meta=dict(epoch=3),
    )


# -------------------------------------------------------- weights in disguise

RIGHT = {
    'bare': lambda good: saved(good),
    'ordered': lambda good: saved(collections.OrderedDict(good)),
    'legacy format': lambda good: saved(
        good, _use_new_zipfile_serialization=False
    ),
    'mmengine': lambda good: saved(dict(state_dict=good, meta=dict(epoch=1))),
    'authors': lambda good: saved(dict(model=good, epoch=3, max_accuracy=8.0)),
    'DataParallel': lambda good: saved(prefixed(good, 'module.')),
    'DataParallel in mmengine': lambda good: saved(
        dict(state_dict=prefixed(good, 'module.'), meta={})
    ),
    'whole model': lambda good: saved(
        dict(state_dict=prefixed(good, 'backbone.'))
    ),
    'whole model in DataParallel': lambda good: saved(
        dict(state_dict=prefixed(good, 'module.backbone.'))
    ),
    'EMA': lambda good: saved(averaged(good)),
    'parameters': lambda good: saved(
        {k: torch.nn.Parameter(v) for k, v in good.items()}
    ),
    'float16': lambda good: saved({k: v.half() for k, v in good.items()}),
    'bfloat16': lambda good: saved({k: v.bfloat16() for k, v in good.items()}),
    'float64': lambda good: saved({k: v.double() for k, v in good.items()}),
    'not contiguous': lambda good: saved(
        {k: v.mT.contiguous().mT if v.ndim > 1 else v for k, v in good.items()}
    ),
}
ROUNDED = {'float16': torch.float16, 'bfloat16': torch.bfloat16}


@pytest.mark.usefixtures('torch_version')
@pytest.mark.parametrize('kind', RIGHT)
def test_right_weights_in_any_dress_load(tmp_path, good, kind):
    path = tmp_path / 'weights.pth'
    path.write_bytes(RIGHT[kind](good))
    for name, value in load(path).state_dict().items():
        wanted = good[name].to(ROUNDED.get(kind, torch.float32)).float()
        assert torch.equal(value, wanted), name


# ------------------------------------------------------------- foreign files


def archive(make, names):
    """A zip or tar file with a member of each name."""
    file = io.BytesIO()
    if make is zipfile.ZipFile:
        with zipfile.ZipFile(file, 'w') as out:
            for name in names:
                out.writestr(name, b'\x80\x02}.')
    else:
        with tarfile.open(fileobj=file, mode='w') as out:
            for name in names:
                out.addfile(tarfile.TarInfo(name))
    return file.getvalue()


def arrays(good):
    file = io.BytesIO()
    np.savez(file, **{k: v.numpy() for k, v in good.items()})
    return file.getvalue()


def one_array():
    file = io.BytesIO()
    np.save(file, np.ones(3))
    return file.getvalue()


def flipped(content):
    bits = bytearray(content)
    bits[content.index(np.float32(1.5).tobytes()) + 2] ^= 4
    return bytes(bits)


def script():
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    return file.getvalue()


def safetensors(good):
    """The format, written by hand: a length, a header, the numbers."""
    header, data = {}, b''
    for name, value in good.items():
        bits = value.numpy().tobytes()
        header[name] = dict(
            dtype='F32',
            shape=list(value.shape),
            data_offsets=[len(data), len(data) + len(bits)],
        )
        data += bits
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, 'little') + text + data


def changed(good, name=None, **kwargs):
    name = name or 'stages.1.blocks.0.mlp.fc1.weight'
    assert name in good
    return saved({**good, name: kwargs['value']})


DAMAGED = r'not a checkpoint that torch.save wrote, or it is damaged \('
UNFIT = r'(config builds|made with|another file)'
WRONG = {
    'empty': (lambda good: b'', 'is empty'),
    'one byte': (lambda good: b'\x80', DAMAGED),
    'zeros': (lambda good: bytes(5000), DAMAGED),
    'noise': (lambda good: np.random.RandomState(0).bytes(5000), DAMAGED),
    'text': (lambda good: b'weights\n', DAMAGED),
    'HTML': (lambda good: b'<!doctype html><html>', 'is a web page'),
    'HTML after blanks': (lambda good: b'\n\n  <HTML>', 'is a web page'),
    'JSON': (lambda good: b'{"error": "quota exceeded"}', DAMAGED),
    'Git LFS pointer': (
        lambda good: b'version https://git-lfs.github.com/spec/v1\n',
        'is a pointer of Git LFS, not the checkpoint',
    ),
    'safetensors': (safetensors, DAMAGED),
    'npz': (arrays, DAMAGED),
    'npy': (lambda good: one_array(), DAMAGED),
    'empty zip': (lambda good: archive(zipfile.ZipFile, []), DAMAGED),
    'other zip': (lambda good: archive(zipfile.ZipFile, ['a']), DAMAGED),
    'zip with data.pkl': (
        lambda good: archive(zipfile.ZipFile, ['archive/data.pkl']),
        DAMAGED,
    ),
    'tar': (lambda good: archive(tarfile.TarFile, ['storages']), DAMAGED),
    'tar of torch 0.1': (
        lambda good: archive(
            tarfile.TarFile, ['storages', 'tensors', 'pickle']
        ),
        DAMAGED,
    ),
    'gzip': (lambda good: b'\x1f\x8b\x08' + bytes(100), DAMAGED),
    'TorchScript': (lambda good: script(), DAMAGED),
    'without its head': (lambda good: saved(good)[100:], DAMAGED),
    'without its end': (lambda good: saved(good)[:-100], DAMAGED),
    'half': (lambda good: saved(good)[: len(saved(good)) // 2], DAMAGED),
    'legacy cut': (
        lambda good: saved(good, _use_new_zipfile_serialization=False)[:-999],
        DAMAGED,
    ),
    'with a hole': (
        lambda good: saved(good)[:9000] + bytes(500) + saved(good)[9500:],
        DAMAGED,
    ),
    'pickle protocol 4': (
        lambda good: saved(good, pickle_protocol=4),
        DAMAGED,
    ),
    'one bit': (lambda good: flipped(saved(good)), 'wrong checksum'),
    'tensor': (lambda good: saved(torch.ones(3)), 'holds a Tensor'),
    'list': (lambda good: saved(list(good.values())), 'holds a list'),
    'number': (lambda good: saved(3), 'holds a int'),
    'numbered': (lambda good: saved({0: torch.ones(3)}), 'an entry 0'),
    'numbered within': (
        lambda good: saved(dict(state_dict={0: torch.ones(3)})),
        'an entry 0',
    ),
    'no weights': (lambda good: saved({}), UNFIT),
    'optimiser alone': (
        lambda good: saved(dict(optimizer=dict(state={}))),
        UNFIT,
    ),
    'EMA alone': (
        lambda good: saved(dict(ema_state_dict=averaged(good))),
        UNFIT,
    ),
    'other model': (
        lambda good: saved(torch.nn.Linear(3, 3).state_dict()),
        UNFIT,
    ),
    'other prefix': (lambda good: saved(prefixed(good, 'encoder.')), UNFIT),
    'other variant': (
        lambda good: saved(DAT({**TINY, 'embed_dims': 16}).state_dict()),
        UNFIT,
    ),
    'other depth': (
        lambda good: saved(
            DAT(
                {**TINY, 'depths': 1, 'attentions': ['N', 'L', 'L', 'D']}
            ).state_dict()
        ),
        UNFIT,
    ),
    'entry missing': (lambda good: saved(dict([*good.items()][1:])), UNFIT),
    'other shape': (lambda good: changed(good, value=torch.ones(3)), UNFIT),
    'no numbers': (lambda good: changed(good, value=torch.ones(0)), UNFIT),
    'array for a tensor': (
        lambda good: changed(good, value=np.ones((32, 8), 'f4')),
        'not a tensor that can be copied',
    ),
    'word for a tensor': (
        lambda good: changed(good, value='0.5'),
        'not a tensor that can be copied',
    ),
    'None for a tensor': (lambda good: changed(good, value=None), UNFIT),
    'sparse tensor': (
        lambda good: changed(good, value=torch.ones(64, 16).to_sparse()),
        'not a tensor that can be copied',
    ),
    'empty table': (
        lambda good: changed(
            good,
            'stages.3.blocks.1.attn.rpe_table',
            value=torch.ones(2, 0, 0),
        ),
        UNFIT,
    ),
}


@pytest.mark.usefixtures('torch_version')
@pytest.mark.parametrize('kind', WRONG)
def test_other_files_end_in_a_sentence(tmp_path, good, kind):
    make, message = WRONG[kind]
    path = tmp_path / 'weights.pth'
    path.write_bytes(make(good))
    with pytest.raises(UserError, match=message) as caught:
        load(path)
    text = str(caught.value)
    assert str(path) in text and text.endswith('.') and '\n' not in text


def test_a_safetensors_file_that_is_none(tmp_path, good):
    pytest.importorskip('safetensors')
    path = tmp_path / 'weights.safetensors'
    for content in (saved(good), b'<html>', safetensors(good)[:-9]):
        path.write_bytes(content)
        with pytest.raises(UserError, match='web page|safetensors wrote'):
            load(path)


def test_files_that_cannot_be_opened(tmp_path):
    loop = tmp_path / 'loop.pth'
    loop.symlink_to(loop)
    lost = tmp_path / 'lost.pth'
    lost.symlink_to(tmp_path / 'gone.pth')
    for path in (tmp_path, loop, lost, tmp_path / 'none.pth'):
        with pytest.raises(UserError):
            load(path)


# ----------------------------------------------------------- files with code


class Asks:
    """Unpickled, it calls something."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class AsksLater(Asks):
    """Calls what it brings as a state."""

    def __reduce__(self):
        function, args = self.call
        return HistoryBuffer, (), (None, dict(min=function, x=args))


def attacks(mark):
    touch = f'touch {mark}'
    code = f'open({str(mark)!r}, "w")'
    inner = pickle.dumps(Asks(os.system, touch))
    (mark.parent / 'inner.pkl').write_bytes(inner)
    return {
        'os.system': Asks(os.system, touch),
        'popen': Asks(os.popen, touch),
        'subprocess': Asks(subprocess.Popen, ['touch', str(mark)]),
        'eval': Asks(builtins.eval, code),
        'exec': Asks(builtins.exec, code),
        'open': Asks(builtins.open, str(mark), 'w'),
        'import': Asks(importlib.import_module, 'antigravity'),
        'getattr': Asks(getattr, Asks(__import__, 'os'), 'system'),
        'partial': Asks(functools.partial, os.system, touch),
        'map': Asks(list, Asks(map, os.system, [touch])),
        'pickle': Asks(pickle.loads, inner),
        'torch.load': Asks(torch.load, str(mark.parent / 'inner.pkl'), 'cpu'),
        'numpy': Asks(np.load, str(mark.parent / 'inner.pkl'), None, True),
        'torch.hub': Asks(torch.hub.load, str(mark.parent), 'x'),
        'in an ordered dict': collections.OrderedDict(
            weight=Asks(os.system, touch)
        ),
        'as a key': {Asks(os.system, touch): 1},
        'in an array': np.array([Asks(os.system, touch)], dtype=object),
        'in a state': AsksLater(os.system, touch),
        'after tensors': [torch.ones(2), Asks(os.system, touch)],
        'a whole model': torch.nn.Linear(2, 2),
    }


DOORS = {
    'file': lambda path: load_checkpoint_file(path),
    'init_cfg': lambda path: build(
        init_cfg=dict(type='Pretrained', checkpoint=str(path))
    ).init_weights(),
}
FORMATS = {
    'zip': saved,
    'legacy': lambda x: saved(x, _use_new_zipfile_serialization=False),
    'plain pickle': lambda x: pickle.dumps(x, protocol=2),
}


@pytest.mark.usefixtures('torch_version')
@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize('door', DOORS)
def test_nothing_in_a_file_is_run(tmp_path, good, door, form):
    mark, path = tmp_path / 'ran', tmp_path / 'weights.pth'
    for kind, attack in attacks(mark).items():
        content = dict(state_dict=good, meta=attack)
        if form == 'plain pickle':
            content['state_dict'] = {}
        path.write_bytes(FORMATS[form](content))
        with pytest.raises(UserError, match='refused|damaged') as caught:
            DOORS[door](path)
        assert str(path) in str(caught.value), kind
        assert not mark.exists(), kind


def test_the_attacks_would_work_on_a_careless_reader(tmp_path):
    """Otherwise the test above would show nothing."""
    worked = 0
    for attack in attacks(tmp_path / 'ran').values():
        (tmp_path / 'ran').unlink(missing_ok=True)
        if type(attack) is not Asks:
            continue
        if attack.call[0] not in (os.system, exec, eval):
            continue
        pickle.loads(pickle.dumps(attack))
        worked += (tmp_path / 'ran').exists()
    assert worked >= 3


# -------------------------------------------------------------- damaged bits


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A small file, and what it holds."""
    content = dict(
        state_dict={'a.weight': torch.randn(7, 5), 'b': torch.arange(9)},
        meta=dict(epoch=3, words=['x', 'y']),
    )
    folder = tmp_path_factory.mktemp('bits')
    return content, folder / 'bits.pth'


@pytest.mark.usefixtures('torch_version')
@pytest.mark.fuzz
@given(st.data())
def test_damaged_bits_never_pass_for_weights(whole, data):
    """Each record of a zip has a checksum; the legacy format has none."""
    content, path = whole
    bits = bytearray(saved(content))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(bits) - 1))
        bits[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bits[: data.draw(st.integers(1, len(bits)) | st.none())])
    try:
        found = load_checkpoint_file(path)
    except UserError:
        return
    for name, value in content['state_dict'].items():
        assert torch.equal(found['state_dict'][name], value)


@pytest.mark.fuzz
@given(st.data())
def test_damaged_bits_of_the_legacy_format_end_in_a_sentence(whole, data):
    content, path = whole
    bits = bytearray(saved(content, _use_new_zipfile_serialization=False))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(bits) - 1))
        bits[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bits[: data.draw(st.integers(1, len(bits)) | st.none())])
    try:
        load_checkpoint_file(path)
    except UserError as error:
        assert str(path) in str(error)


def test_kinds_of_files():
    """The page on reliability speaks of so many."""
    assert len(RIGHT) >= 15 and len(WRONG) >= 40
    assert copy.copy(RIGHT).keys().isdisjoint(WRONG)
