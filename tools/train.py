# Copyright (c) mmdat contributors. Apache-2.0 licence.
# ruff: noqa: E402
"""Trains a detector, segmentor or classifier."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C while packages are imported ends without their traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse

from mmengine.runner import FlexibleRunner, Runner

from mmdat.checkpoints.loading import use_safe_loading
from mmdat.engine.arguments import common_parser, parse
from mmdat.engine.building import one_sentence_builds
from mmdat.engine.configuration import (
    enable_amp,
    enable_auto_scale_lr,
    load_config,
    set_loader_defaults,
    set_work_dir,
)
from mmdat.engine.data_files import set_data_root
from mmdat.engine.distributed import (
    check_in_one,
    end_launch,
    prepare_launch,
)
from mmdat.engine.hooks.try_validation import TryValidationHook
from mmdat.engine.preflight import (
    check_contents,
    check_run,
    check_weights,
    warn_of_unmatched_keys,
)
from mmdat.engine.resuming import check_resumable, set_resume
from mmdat.engine.starting import (
    match_tables,
    set_pretrained,
    warn_of_random_start,
)
from mmdat.engine.work_dir import prepare_work_dir
from mmdat.utils.errors import one_sentence_errors


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = common_parser(__doc__)
    parser.add_argument(
        '--pretrained',
        metavar='FILE',
        help='checkpoint that the backbone starts from, such as a classifier '
        "on ImageNet; 'none' for random weights",
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='continue from this checkpoint, or without a name from the '
        'latest one in the work dir',
    )
    parser.add_argument(
        '--amp', action='store_true', help='train in mixed precision'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate to the total batch size',
    )
    return parse(parser)


def main() -> None:
    """Trains."""
    args = parse_args()
    use_safe_loading()
    with (
        one_sentence_errors('train'),
        one_sentence_builds(args.config),
    ):
        cfg = load_config(args.config, args.cfg_options)
        set_work_dir(cfg, args.work_dir)
        if args.data_root is not None:
            set_data_root(cfg, args.data_root)
        if args.amp:
            enable_amp(cfg)
        if args.auto_scale_lr:
            enable_auto_scale_lr(cfg)
        set_pretrained(cfg, args.pretrained)
        check_resumable(cfg, set_resume(cfg, args.resume))
        set_loader_defaults(cfg)
        match_tables(cfg)
        check_run(cfg, ('train', 'val'))
        warn_of_random_start(cfg, args.pretrained)
        prepare_launch(cfg, args.launcher)
        if not args.no_check:
            check_contents(cfg, ('train', 'val'), args.launcher)
        check_in_one(lambda: prepare_work_dir(cfg.work_dir))
        if cfg.get('strategy') is None:
            runner = Runner.from_cfg(cfg)
            check_weights(runner, training=True)
            if not args.no_check:
                warn_of_unmatched_keys(runner)
                runner.register_hook(TryValidationHook())
        else:  # builds the model when it trains
            from mmdat.engine import sharding  # noqa: F401 registers

            runner = FlexibleRunner.from_cfg(cfg)
        runner.train()
        end_launch()


if __name__ == '__main__':
    main()
