# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The commands of the zoo give the authors' runs.

What they ran is in configs/dat of LeapLabTHU/DAT-Detection and
DAT-Segmentation: rate, pictures of a GPU and GPUs (the "4n" and "8n" of the
names are machines of 8), fp16 hook, use_checkpoint, iterations.
"""

import re
import shlex
from pathlib import Path

import family
import pytest
from mmengine.config import DictAction

from mmdat.engine.arguments import common_parser

PAGE = (Path(__file__).parents[2] / 'docs/model_zoo.md').read_text()
# Total batch, rate at it, float16, checkpointing.
AUTHORS = {
    'rtn_tiny_1x_4n_dp00_lr2': ('retinanet_dat_pp_t_coco', 2e-4, True),
    'rtn_small_3x_4n_dp05_lr2': ('retinanet_dat_pp_s_3x_coco', 2e-4, True),
    'mrcn_tiny_1x_4n_dp00_lr4': ('mask_rcnn_dat_pp_t_coco', 4e-4, True),
    'mrcn_small_3x_4n_dp05_lr4': ('mask_rcnn_dat_pp_s_3x_coco', 4e-4, True),
    'cmrcn_tiny_3x_4n_dp01_lr4': (
        'cascade_mask_rcnn_dat_pp_t_3x_coco',
        4e-4,
        True,
    ),
    'cmrcn_small_3x_4n_dp05_lr4': (
        'cascade_mask_rcnn_dat_pp_s_3x_coco',
        4e-4,
        False,
    ),
    'cmrcn_base_3x_8n_dp08_lr4': (
        'cascade_mask_rcnn_dat_pp_b_3x_coco',
        4e-4,
        False,
    ),
    'upn_tiny_160k_dp03_lr6': ('upernet_dat_pp_t_ade20k', 6e-5, True),
    'upn_small_160k_dp05_lr6': ('upernet_dat_pp_s_ade20k', 6e-5, True),
    'upn_base_160k_dp07_lr6': ('upernet_dat_pp_b_ade20k', 6e-5, False),
    'fpn_tiny_80k_dp04_lr2': ('semantic_fpn_dat_pp_t_ade20k', 2e-4, False),
    'fpn_base_80k_dp07_lr2': ('semantic_fpn_dat_pp_b_ade20k', 2e-4, False),
}


def commands():
    """By letter: config, processes and the arguments of train.py."""
    (block,) = re.findall(r'^```bash\n(.*?)^```', PAGE, re.M | re.S)
    found = {}
    for letter, command in re.findall(
        r'^# ([A-E])\n(.*?)(?=^# |\Z)', block, re.M | re.S
    ):
        _, config, processes, *rest = shlex.split(command.replace('\\\n', ' '))
        found[letter] = Path(config).stem, int(processes), rest
    return found


COMMANDS = commands()


def letter_of(name):
    """The command of the table for a config."""
    method = name.split('_dat_')[0]
    size = name.split('_pp_')[1][0]
    if method == 'cascade_mask_rcnn':
        return 'A' if size == 't' else 'B'
    if method == 'upernet':
        return 'D' if size == 'b' else 'C'
    return 'E' if method == 'semantic_fpn' else 'A'


def test_all_commands_are_there():
    assert sorted(COMMANDS) == list('ABCDE')
    for letter, (name, *_) in COMMANDS.items():
        assert letter_of(name) == letter


@pytest.mark.parametrize('run', AUTHORS)
def test_a_command_is_the_authors_run(run):
    name, rate, half = AUTHORS[run]
    _, processes, arguments = COMMANDS[letter_of(name)]
    parser = common_parser(None)
    for flag in ('--amp', '--auto-scale-lr'):
        parser.add_argument(flag, action='store_true')
    parser.add_argument('--pretrained')
    args = parser.parse_args(['config', *arguments])
    assert args.pretrained and args.amp == half
    cfg = family.load(name)
    for key in args.cfg_options:
        known, *rest = cfg, *key.split('.')
        for part in rest:  # of the config, or an argument of DAT
            known = (
                known[int(part) if part.isdigit() else part]
                if (part != 'with_cp')
                else True
            )
    cfg.merge_from_dict(args.cfg_options)
    batch = cfg.train_dataloader.batch_size * processes
    is_fpn, is_coco = name.startswith('semantic'), name.endswith('coco')
    assert batch == (64 if is_coco else 32 if is_fpn else 16)
    scale = batch / cfg.auto_scale_lr.base_batch_size
    assert (scale != 1) == args.auto_scale_lr
    lr = cfg.optim_wrapper.optimizer.lr * scale
    assert lr == pytest.approx(rate)
    assert cfg.model.backbone.get('with_cp', False) == (not is_fpn)
    if is_fpn:
        assert cfg.train_cfg.max_iters == cfg.param_scheduler[0].end == 40000
        assert cfg.train_cfg.val_interval == 4000
    elif is_coco:
        assert cfg.param_scheduler[0].end == 500


def test_each_row_of_dat_says_that_its_recipe_is_borrowed():
    said = 'Detectors and segmentors of DAT (2022) use the recipe of DAT++.'
    assert said in PAGE


def test_the_action_of_options_is_mmengines():
    """Commands are read here as tools/train.py reads them."""
    actions = {a.dest: type(a) for a in common_parser(None)._actions}
    assert issubclass(actions['cfg_options'], DictAction)
