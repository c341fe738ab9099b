# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Threads of one core each."""

import threading

import pytest
import torch

from mmdat.ops.separable import threads


@pytest.fixture(params=[2, 3])
def count(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_thread_has_one_core_and_the_caller_all(count):
    def cores(_):
        torch.randn(64, 4096).softmax(-1)  # what could be split
        return torch.get_num_threads()

    assert threads.run(cores, range(8)) == [1] * count
    assert torch.get_num_threads() == count


def test_every_item_is_done_once_in_the_order_of_the_parts(count):
    parts = threads.run(list, range(8))
    assert parts == [list(range(8))[i::count] for i in range(count)]


def test_one_item_stays_with_the_caller(count):
    (cores,) = threads.run(lambda _: torch.get_num_threads(), [0])
    assert cores == count


def test_errors_reach_the_caller(count):
    def fail(items):
        raise ValueError(f'no {items[0]}')

    with pytest.raises(ValueError, match='no 0'):
        threads.run(fail, range(8))


@pytest.mark.parametrize('inference', [False, True])
def test_the_modes_of_the_caller_hold(count, inference):
    with torch.inference_mode(inference):
        out = torch.zeros(8)

        def write(items):
            out[list(items)] = 1
            return torch.is_inference_mode_enabled(), torch.is_grad_enabled()

        assert threads.run(write, range(8)) == [(inference, False)] * count
        assert out.all()


def test_python_threads_with_different_numbers_do_not_disturb_each_other():
    failed = []

    def use(number):
        torch.set_num_threads(number)
        try:
            for _ in range(300):
                parts = threads.run(len, range(12))
                assert sum(parts) == 12 and len(parts) == number
        except Exception as error:
            failed.append(error)

    before = torch.get_num_threads()
    users = [threading.Thread(target=use, args=(2 + i,)) for i in range(3)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    torch.set_num_threads(before)
    assert not failed
