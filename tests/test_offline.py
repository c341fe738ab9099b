# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Nothing is asked of any network, unless the user names a URL."""

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import family
import pytest
import torch

ROOT = Path(__file__).parents[1]
TRAIN = (ROOT / 'tools' / 'train.py', 'configs/classifier_dat_digits.py')

# What a library might do, each without letting on.
TRIES = """
import contextlib, socket, subprocess, sys, urllib.request
with contextlib.suppress(OSError):
    urllib.request.urlopen('http://one.invalid/weights.pth')
with contextlib.suppress(OSError):
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.sendto(b'', ('127.0.0.2', 9))
with contextlib.suppress(OSError):
    socket.socket().connect(('127.0.0.3', 9))
subprocess.run([sys.executable, '-c', '''
import socket
socket.gethostbyname('four.invalid')
'''], capture_output=True)
"""

EVERY_MODULE = """
import importlib, importlib.util, pkgutil, mmdat
from mmdat.ops.custom_op import HAS_OPERATORS
modules = [m.name for m in pkgutil.walk_packages(mmdat.__path__, 'mmdat.')]
if not HAS_OPERATORS:  # nor has its Triton what the kernels are written in
    modules = [m for m in modules if 'triton' not in m or 'kernel' not in m]
    modules.remove('mmdat.ops.triton.bias_parts')
if importlib.util.find_spec('timm') is None:
    modules.remove('mmdat.zoo.timm_dat')
modules = [importlib.import_module(name) for name in modules]
assert len(modules) > 80, len(modules)
"""

BACKBONES = """
import torch, mmdat
for arch in ('dat_t', 'dat_pp_t'):
    model = mmdat.DAT(arch)
    model.init_weights()
    model.train()
    sum(x.sum() for x in model(torch.rand(1, 3, 64, 64))).backward()
"""

DETECTOR = """
import family, torch
from mmdet.testing import demo_mm_inputs
from mmengine.optim import OptimWrapper
cfg = family.load('mask_rcnn_dat_digits')
model = family.build(cfg)
model.init_weights()
wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-9))
data = demo_mm_inputs(1, [[3, 96, 96]], num_classes=2, with_mask=True)
model.train_step(data, wrapper)
model.eval().test_step(data)
"""


@pytest.fixture
def guarded(tmp_path):
    """Runs Python where connections are forbidden.

    Returns:
        A function of a command line, and of the hosts that may be asked; it
        gives the hosts that were.
    """
    notes = tmp_path / 'notes'

    def run(*command, allowed=''):
        tests = ROOT / 'tests'
        paths = [tests / 'offline', ROOT, tests / 'helpers']
        notes.write_text('')
        done = subprocess.run(
            [sys.executable, *(str(c) for c in command)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={
                **os.environ,
                'PYTHONPATH': os.pathsep.join(map(str, paths)),
                'OMP_NUM_THREADS': '1',
                'OFFLINE_NOTES': str(notes),
                'OFFLINE_ALLOWED': allowed,
                'TORCH_HOME': str(tmp_path / 'torch_home'),
            },
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        return set(notes.read_text().split())

    return run


def test_tries_are_noticed_even_if_nobody_is_told(guarded):
    hosts = {'one.invalid', '127.0.0.2', '127.0.0.3', 'four.invalid'}
    assert guarded('-c', TRIES) == hosts


def test_importing_every_module_asks_nobody(guarded):
    for package in ('mmdet', 'mmcv', 'pycocotools', 'skimage'):
        pytest.importorskip(package)
    assert guarded('-c', EVERY_MODULE) == set()


def test_building_and_training_backbones_asks_nobody(guarded):
    assert guarded('-c', BACKBONES) == set()


def test_a_training_step_of_a_detector_asks_nobody(guarded):
    pytest.importorskip('mmdet')
    assert guarded('-c', DETECTOR) == set()


@pytest.mark.slow
def test_a_training_by_the_command_asks_nobody(guarded, tmp_path):
    pytest.importorskip('mmpretrain')
    from mmdat.datasets.digits import DigitsOptions, make_digits

    options = DigitsOptions(train=8, val=4, size=96, crops=4, crop_size=48)
    digits = make_digits(tmp_path / 'digits', options)
    asked = guarded(
        *(*TRAIN, '--work-dir', tmp_path, '--data-root'),
        *(f'{digits}/imagenet/', '--cfg-options', 'train_cfg.max_epochs=1'),
    )
    assert (tmp_path / 'epoch_1.pth').is_file() and asked == set()


class Server(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.paths.append(self.path)
        self.send_response(200)
        self.send_header('Content-Length', len(self.server.content))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *_):
        pass


def test_only_the_url_that_the_user_gives_is_asked(guarded, tmp_path):
    code = (
        'import torch, mmdat\n'
        "init = dict(type='Pretrained', checkpoint={url!r}, strict=False)\n"
        "model = mmdat.DAT('dat_t', init_cfg=init)\n"
        'model.init_weights()\n'
        'assert (model.norm3.bias == 7).all()\n'
    )
    path = tmp_path / 'weights.pth'
    torch.save({'norm3.bias': torch.full((768,), 7.0)}, path)
    server = HTTPServer(('127.0.0.1', 0), Server)
    server.paths, server.content = [], path.read_bytes()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f'http://127.0.0.1:{server.server_port}/weights.pth'
        asked = guarded('-c', code.format(url=url), allowed='127.0.0.1')
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert asked == {'127.0.0.1'} and server.paths == ['/weights.pth']


def urls(value):
    """The URLs anywhere inside a setting."""
    if isinstance(value, dict):
        return [url for item in value.values() for url in urls(item)]
    if isinstance(value, list | tuple):
        return [url for item in value for url in urls(item)]
    return [value] if isinstance(value, str) and '://' in value else []


def test_no_config_names_a_url():
    pytest.importorskip('mmdet')
    assert urls(dict(a=[dict(b='https://here')])) == ['https://here']
    found = {name: urls(dict(family.load(name))) for name in family.NAMES}
    assert len(found) > 40 and not any(found.values()), found
