# Copyright (c) mmdat contributors. Apache-2.0 licence.
import math

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

import mmdat  # noqa: F401

T_AND_S = dict(warmup=20, start_factor=0.001, eta_min_ratio=0.01, end=300)
B = dict(warmup=50, start_factor=0.00125, eta_min_ratio=0.0125, end=300)
# Base rate, floor and start, all for 512 pictures, and epochs of warm-up: of
# the authors' config.py and configs/dat_base.yaml.
AUTHORS = [(T_AND_S, 5e-4, 5e-6, 5e-7, 20), (B, 4e-4, 5e-6, 5e-7, 50)]


def timm(update, updates, warm_up, peak, floor, start):
    """CosineLRScheduler of timm 0.5.4 as the authors call it.

    t_initial=updates, warmup_t=warm_up, warmup_prefix=False, cycle_limit=1.
    """
    if update < warm_up:
        return start + update * (peak - start) / warm_up
    if update >= updates:  # the one cycle is over
        return floor
    cosine = math.cos(math.pi * update / updates)
    return floor + 0.5 * (peak - floor) * (1 + cosine)


def optimizer(*rates):
    groups = [
        dict(params=[torch.nn.Parameter(torch.zeros(1))], lr=rate)
        for rate in rates
    ]
    return OptimWrapper(torch.optim.SGD(groups, lr=1.0))


def build(wrapper, **kwargs):
    return PARAM_SCHEDULERS.build(
        dict(type='mmdat.WarmupCosineLR', optimizer=wrapper, **kwargs)
    )


def rates(wrapper, scheduler, steps):
    """The rates of the first group, step by step."""
    found = []
    for _ in range(steps):
        found.append(wrapper.param_groups[0]['lr'])
        wrapper.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(('settings', 'lr', 'floor', 'start', 'e'), AUTHORS)
@pytest.mark.parametrize('batch', [512, 1024, 96])
def test_by_updates_it_is_timms(settings, lr, floor, start, e, batch):
    length, scale = 7, batch / 512
    wrapper = optimizer(lr * scale)
    scheduler = build(
        wrapper, convert_to_iter_based=True, epoch_length=length, **settings
    )
    wanted = [
        timm(
            t,
            300 * length,
            e * length,
            lr * scale,
            floor * scale,
            start * scale,
        )
        for t in range(300 * length)
    ]
    found = rates(wrapper, scheduler, 300 * length)
    assert found == pytest.approx(wanted, rel=1e-12)
    # The jump, by which a chain of schedulers would differ.
    drop = found[e * length] / (lr * scale)
    assert drop == pytest.approx(0.989 if e == 20 else 0.934, abs=1e-3)


def test_by_epochs_it_is_timms():
    wrapper = optimizer(5e-4, 1e-5)
    scheduler = build(wrapper, **T_AND_S)
    found = rates(wrapper, scheduler, 300)
    wanted = [timm(t, 300, 20, 5e-4, 5e-6, 5e-7) for t in range(300)]
    assert found == pytest.approx(wanted, rel=1e-12)
    # Groups of another rate, as of layer decay, keep their ratio.
    first, second = wrapper.optimizer.param_groups
    assert second['lr'] == pytest.approx(first['lr'] / 50, rel=1e-12)


def test_a_resumed_schedule_goes_on():
    whole, broken = optimizer(1e-3), optimizer(1e-3)
    wanted = rates(whole, build(whole, **T_AND_S), 300)
    first = build(broken, **T_AND_S)
    found = rates(broken, first, 130)
    later = optimizer(1e-3)
    later.load_state_dict(broken.state_dict())
    second = build(later, **T_AND_S)
    second.load_state_dict(first.state_dict())
    later.param_groups[0]['lr'] = broken.param_groups[0]['lr']
    assert found + rates(later, second, 170) == pytest.approx(wanted)
