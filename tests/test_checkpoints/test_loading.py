# Copyright (c) mmdat contributors. Apache-2.0 licence.
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from malice import RunsCode, save
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from mmdat.checkpoints.loading import (
    load_checkpoint_file,
    safe_loading,
    use_safe_loading,
)
from mmdat.models import DAT
from mmdat.utils.errors import UserError

ROOT = Path(__file__).parents[2]


class ReadsGlobals:
    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


@pytest.mark.usefixtures('torch_version')
def test_reads_what_training_leaves(tmp_path):
    history = HistoryBuffer()
    for value in (1.0, 3.0):
        history.update(value)
    saved = dict(
        state_dict=dict(weight=torch.rand(3, 4)),
        message_hub=dict(log_scalars=dict(loss=history)),
        meta=dict(seed=np.int64(3), share=np.float64(0.5), cut=slice(1, 2)),
        array=np.arange(4, dtype=np.uint8),
    )
    torch.save(saved, tmp_path / 'epoch_1.pth')
    found = load_checkpoint_file(tmp_path / 'epoch_1.pth')
    torch.testing.assert_close(found['state_dict'], saved['state_dict'])
    assert found['message_hub']['log_scalars']['loss'].mean() == 2
    assert found['meta'] == saved['meta']
    assert (found['array'] == saved['array']).all()


@pytest.mark.usefixtures('torch_version')
def test_reads_what_the_training_code_of_dat_leaves(tmp_path, monkeypatch):
    """Settings are a yacs.CfgNode; yacs need not be there to read them."""

    class CfgNode(dict):
        pass

    CfgNode.__module__ = 'yacs.config'
    CfgNode.__qualname__ = 'CfgNode'
    package, module = ModuleType('yacs'), ModuleType('yacs.config')
    module.CfgNode = CfgNode
    settings = CfgNode(MODEL=CfgNode(NAME='dat_tiny', DEPTHS=[2, 2, 6, 2]))
    settings.__dict__.update(__immutable__=True, __deprecated_keys__=set())
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'yacs', package)
        patch.setitem(sys.modules, 'yacs.config', module)
        torch.save(
            dict(
                model=dict(weight=torch.ones(2)),
                optimizer=dict(state={0: dict(step=7)}, param_groups=[]),
                lr_scheduler=dict(t_initial=1250, noise_range_t=None),
                max_accuracy=82.03,
                epoch=300,
                config=settings,
            ),
            tmp_path / 'ckpt.pth',
        )
    found = load_checkpoint_file(tmp_path / 'ckpt.pth')
    assert found['config'] == {
        'MODEL': {'NAME': 'dat_tiny', 'DEPTHS': [2, 2, 6, 2]}
    }
    assert found['epoch'] == 300 and found['model']['weight'].tolist() == [
        1,
        1,
    ]


@pytest.mark.usefixtures('torch_version')
def test_reads_what_mmcv_1_leaves(tmp_path):
    meta = dict(
        mmcv_version='1.4.0',
        time='Mon Aug 21 10:11:12 2023',
        config='model = dict()\n',
        env_info='sys.platform: linux \u2713',
        seed=2_147_483_659,
        CLASSES=('person', 'bicycle'),
        PALETTE=[[120, 120, 120], [180, 120, 120]],
        hook_msgs=dict(best_score=np.float64(0.487), last_ckpt='a/b.pth'),
        epoch=12,
        iter=87948,
    )
    torch.save(dict(meta=meta, state_dict={}), tmp_path / 'x.pth')
    assert load_checkpoint_file(tmp_path / 'x.pth')['meta'] == meta


@pytest.mark.parametrize('content', [[1, 2], torch.ones(3)])
def test_other_content_is_named(tmp_path, content):
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(UserError, match=r'holds a (list|Tensor), so save'):
        load_checkpoint_file(tmp_path / 'x.pth')


@pytest.mark.usefixtures('torch_version')
@pytest.mark.parametrize('old_format', [False, True])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, old_format):
    mark, path = tmp_path / 'ran', tmp_path / 'evil.pth'
    content = dict(state_dict=dict(weight=torch.ones(2)), x=RunsCode(mark))
    if old_format:
        path.write_bytes(pickle.dumps(dict(x=RunsCode(mark)), protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match='asks to run posix.system .*refused'):
        load_checkpoint_file(path)
    assert not mark.exists()


@pytest.mark.usefixtures('torch_version')
def test_getattr_reads_statistics_of_logs_only(tmp_path):
    torch.save(dict(x=ReadsGlobals()), tmp_path / 'x.pth')
    with pytest.raises(UserError, match='getattr'):
        load_checkpoint_file(tmp_path / 'x.pth')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'is empty'),
        (b'<!DOCTYPE html><html>Sign in</html>', 'is a web page'),
        (b'\xef\xbb\xbf\r\n<html>', 'is a web page'),
        (b'not a checkpoint', 'not a checkpoint that torch.save wrote'),
        (b'PK\x03\x04 cut off', 'not a checkpoint that torch.save wrote'),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, content, message):
    path = tmp_path / 'file.pth'
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.usefixtures('torch_version')
def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / 'cut.pth'
    torch.save(dict(weight=torch.rand(100)), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match='damaged .*download or copy it again'):
        load_checkpoint_file(path)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(UserError, match='no checkpoint .*nothing.pth'):
        load_checkpoint_file(tmp_path / 'nothing.pth')
    with pytest.raises(UserError, match='is a folder'):
        load_checkpoint_file(tmp_path)


def test_mmengine_reads_through_it(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    monkeypatch.setattr(
        CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes)
    )
    use_safe_loading()
    mark = tmp_path / 'ran'
    torch.save(dict(x=RunsCode(mark)), tmp_path / 'evil.pth')
    with pytest.raises(UserError, match='refused'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'evil.pth'))
    # What comes by other ways, as downloads do, is refused by torch itself.
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 'evil.pth', weights_only=False)
    assert not mark.exists()


def test_a_while_of_safe_loading_leaves_things_as_they_were(
    tmp_path, monkeypatch
):
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', raising=False)
    schemes = CheckpointLoader._schemes
    with pytest.raises(ZeroDivisionError), safe_loading():
        assert CheckpointLoader._schemes is not schemes
        assert os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] == '1'
        raise ZeroDivisionError
    assert CheckpointLoader._schemes is schemes
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ


@pytest.mark.parametrize('prefix', [None, 'backbone.'])
def test_init_cfg_of_a_backbone_runs_no_code(tmp_path, prefix):
    """With nothing but ``import mmdat``, as in anyone's tools."""
    mark = save(tmp_path / 'evil.pth', state_dict={})
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'evil.pth'))
    if prefix is not None:
        init_cfg['prefix'] = prefix
    program = (
        'from mmengine.registry import MODELS\n'
        'import mmdat\n'
        f'model = MODELS.build(dict(type="DAT", init_cfg={init_cfg}))\n'
        'model.init_weights()\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', program],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert 'UserError' in done.stderr and 'asks to run' in done.stderr
    assert not mark.exists()


def test_init_cfg_inside_a_model_runs_no_code(tmp_path):
    from mmengine.model import BaseModule

    class Detector(BaseModule):
        def __init__(self, backbone):
            super().__init__()
            self.backbone = backbone

    mark = save(tmp_path / 'evil.pth', state_dict={})
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'evil.pth'))
    with pytest.raises(UserError, match='refused'):
        Detector(DAT('dat_t', init_cfg=init_cfg)).init_weights()
    assert not mark.exists()
