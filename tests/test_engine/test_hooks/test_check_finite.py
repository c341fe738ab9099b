# Copyright (c) mmdat contributors. Apache-2.0 licence.
import re
from types import SimpleNamespace

import pytest
import torch
import toy
from mmengine.logging import MMLogger

from mmdat.engine.hooks import CheckFiniteHook, check_finite
from mmdat.utils.errors import UserError

HOOKS = dict(
    checkpoint=dict(type='mmdat.AtomicCheckpointHook', interval=1),
    finite=dict(type='mmdat.CheckFiniteHook'),
)
BAD = 6  # the iteration with trouble, counted from 0: in the second epoch


def spoil_loss(value):
    def trouble(iteration, loss):
        return loss * value if iteration == BAD else loss

    return trouble


def spoil_gradient(bad):
    """The loss stays what it is, its gradient becomes NaN."""

    def trouble(iteration, loss):
        if iteration == bad:
            loss.register_hook(lambda grad: grad * float('nan'))
        return loss

    return trouble


def train(folder, trouble):
    run = toy.runner(folder, HOOKS, epochs=4)
    run.model.trouble = trouble
    with pytest.raises(UserError) as caught:
        run.train()
    saved = sorted(folder.glob('*.pth'))
    for path in saved:
        weights = torch.load(path, weights_only=False)['state_dict']
        assert all(value.isfinite().all() for value in weights.values())
    return str(caught.value), [path.name for path in saved]


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_bad_loss_ends_the_training_at_once(value, tmp_path):
    said, saved = train(tmp_path, spoil_loss(value))
    assert f'Training diverged: loss={value}, loss_a={value}' in said
    assert f'in iteration {BAD + 1}. Lower the learning rate' in said
    assert said.endswith(f'the last checkpoint is {tmp_path}/epoch_1.pth.')
    assert saved == ['epoch_1.pth']


def test_a_bad_gradient_is_noticed_by_the_next_loss(tmp_path):
    said, saved = train(tmp_path, spoil_gradient(4))
    assert 'loss=nan' in said and 'in iteration 6.' in said
    assert saved == ['epoch_1.pth']


def test_bad_weights_are_not_saved(tmp_path):
    said, saved = train(tmp_path, spoil_gradient(7))  # the last of its epoch
    assert re.search(
        r'linear.(weight|bias) has infinite or NaN values after iteration 8\.',
        said,
    )
    assert said.endswith('epoch_1.pth.') and saved == ['epoch_1.pth']


def test_before_the_first_checkpoint(tmp_path):
    said, saved = train(tmp_path, spoil_gradient(0))
    assert said.endswith('no checkpoint was saved before.') and not saved


def stub(scaler):
    return SimpleNamespace(
        optim_wrapper=SimpleNamespace(loss_scaler=scaler),
        iter=3,
        work_dir='nowhere',
        logger=MMLogger.get_current_instance(),
    )


def outputs(value):
    return dict(loss=torch.tensor(value), acc=torch.tensor(float('nan')))


def test_loss_scaling_may_skip_an_iteration_or_some():
    hook, runner = CheckFiniteHook(patience=2), stub(scaler=object())
    for value in ('nan', 'inf', '1', 'nan', 'nan'):
        hook.after_train_iter(runner, 0, outputs=outputs(float(value)))
    with pytest.raises(UserError, match='loss=nan in iteration 4'):
        hook.after_train_iter(runner, 0, outputs=outputs(float('nan')))


def test_every_process_may_speak(monkeypatch, capfd):
    monkeypatch.setattr(check_finite, 'is_main_process', lambda: False)
    hook, runner, said = CheckFiniteHook(), stub(None), []
    runner.logger = SimpleNamespace(error=said.append)
    with pytest.raises(UserError):
        hook.after_train_iter(runner, 0, outputs=outputs(float('inf')))
    assert 'loss=inf' in str(said[0])


def save(model, folder):
    """What the hook says when a checkpoint of this model is saved."""
    hook = CheckFiniteHook()
    runner = stub(scaler=None)
    runner.model, runner.work_dir = model, str(folder)
    hook.before_train(runner)
    model(torch.ones(2, 3))
    content = dict(meta=dict(iter=1), state_dict=model.state_dict())
    hook.before_save_checkpoint(runner, content)


class Layers(torch.nn.Module):
    """A parameter that is trained, one that is not, and buffers."""

    def __init__(self, **changes):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer('mask', torch.full((3,), float('-inf')))
        self.register_buffer('mean', torch.zeros(3))
        self.register_buffer('never', torch.full((3,), float('nan')))
        self.changes = changes

    def forward(self, x):
        for name, value in self.changes.items():
            getattr(self, name).data.fill_(value)
        return x


@pytest.mark.parametrize(
    'changes',
    [{}, dict(mean=float('inf')), dict(frozen=float('nan'))],
    ids=str,
)
def test_what_is_not_trained_may_be_infinite(changes, tmp_path):
    save(Layers(**changes), tmp_path)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(weight=float('inf')), 'weight has infinite or NaN values'),
        (dict(mean=float('nan')), 'mean has NaN values'),
        (dict(mask=float('nan')), 'mask has NaN values'),
    ],
)
def test_what_training_changes_may_not(changes, words, tmp_path):
    with pytest.raises(UserError, match=words):
        save(Layers(**changes), tmp_path)
