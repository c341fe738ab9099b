# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Types and arguments of a config that do not exist, in one sentence."""

import pytest
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, LOOPS, DefaultScope, Registry

from mmdat.engine.building import one_sentence_builds
from mmdat.utils.errors import UserError

THINGS = Registry('thing')


@pytest.fixture(autouse=True)
def scope():
    """Other tests of the process leave a scope of their own."""
    with DefaultScope.overwrite_default_scope('mmengine'):
        yield


class Careful:
    def __init__(self, size=1):
        if size <= 0:
            raise ValueError('size must be\n above 0.')
        self.size = size


@THINGS.register_module()
class Heir(Careful):
    def __init__(self, name, **kwargs):
        super().__init__(**kwargs)


@THINGS.register_module()
class Broken:
    def __init__(self):
        self.table = self.make()

    def make(self):
        return {}['nothing']


def sentence(build):
    with (
        pytest.raises(UserError) as told,
        one_sentence_builds('my_config.py'),
    ):
        build()
    text = str(told.value)
    assert text.startswith('my_config.py cannot be built: ')
    assert text.endswith('.') and '\n' not in text
    return text


def test_a_type_that_is_not_registered():
    said = sentence(lambda: HOOKS.build(dict(type='EMAHok')))
    assert "'EMAHok' is no type of hook that mmengine has" in said
    assert "a similar name is 'EMAHook'" in said
    assert 'needs a type' in sentence(lambda: HOOKS.build(dict(a=1)))


def test_an_argument_that_is_unknown():
    loop = dict(type='EpochBasedTrainLoop', max_epoch=3)
    default = dict(runner=None, dataloader=None)
    said = sentence(lambda: LOOPS.build(loop, default_args=default))
    assert "argument 'max_epoch'; a similar name is 'max_epochs'" in said
    heir = dict(type='Heir', name='a', sizes=3)
    said = sentence(lambda: THINGS.build(heir))
    assert "'sizes'; a similar name is 'size'" in said


def test_arguments_that_are_missing_or_refused():
    said = sentence(lambda: THINGS.build(dict(type='Heir')))
    assert "missing 1 required positional argument: 'name'" in said
    heir = dict(type='Heir', name='a', size=0)
    said = sentence(lambda: THINGS.build(heir))
    assert said.endswith('Heir: size must be above 0.')


def raise_type_error():
    return len(5)


def refuse():
    raise UserError('As it is.')


@pytest.mark.parametrize(
    ('build', 'kind'),
    [
        (lambda: THINGS.build(dict(type='Broken')), KeyError),
        (lambda: {}['x'], KeyError),
        (raise_type_error, TypeError),
        (refuse, UserError),
        (lambda: Hook(5), TypeError),
    ],
)
def test_other_errors_are_left_alone(build, kind):
    with pytest.raises(kind) as told, one_sentence_builds('my_config.py'):
        build()
    assert 'cannot be built' not in str(told.value)
