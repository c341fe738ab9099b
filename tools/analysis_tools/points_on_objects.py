# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Measures whether sampled points and attention gather on objects.

For each block it prints the share of the points, and of the attention of all
queries, inside the masks of objects, next to the share of the picture that the
masks cover. Without arguments it uses the pictures in demo/.
"""

import argparse
from pathlib import Path

from mmengine.config import DictAction
from pycocotools.coco import COCO
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from mmdat.checkpoints.loading import use_safe_loading
from mmdat.engine.configuration import load_config
from mmdat.engine.data_files import set_data_root
from mmdat.engine.demo_model import use_demo_files
from mmdat.utils.errors import UserError, one_sentence_errors
from mmdat.visualization.objects import mean_on_objects, on_objects
from mmdat.visualization.picture import load_model, load_picture, record

ROOT = Path(__file__).resolve().parents[2]


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'config', nargs='?', help='config; without one the model in demo/'
    )
    parser.add_argument('checkpoint', nargs='?', help='its weights')
    parser.add_argument('--data-root', help='where the data set lies')
    parser.add_argument(
        '--annotations',
        help='COCO JSON of masks; by default that of the test data',
    )
    parser.add_argument(
        '--images', help='folder of the pictures; by default the test data'
    )
    parser.add_argument(
        '--count', type=int, default=100, help='how many pictures, at most'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings to override, key=value; lists as key="[a,b]"',
    )
    return parser.parse_args()


def find_data(args: argparse.Namespace) -> tuple[Path, Path]:
    """The annotations and the folder of pictures."""
    demo = use_demo_files(args, ROOT, None)
    cfg = load_config(args.config, args.cfg_options)
    if args.data_root is not None:
        set_data_root(cfg, args.data_root)
    if args.annotations is not None or args.images is not None:
        if args.annotations is None or args.images is None:
            raise UserError(
                '--annotations and --images belong together; name both.'
            )
        paths = Path(args.annotations), Path(args.images)
    elif demo and args.data_root is None:
        pictures = ROOT / 'demo' / 'pictures'
        paths = pictures / 'annotations.json', pictures
    else:
        dataset = cfg.test_dataloader.dataset
        root = Path(dataset.get('data_root') or '')
        if not str(dataset.get('ann_file', '')).endswith('.json'):
            raise UserError(
                f'The masks come from annotations in COCO JSON, which the '
                f'test data of {args.config} do not have; name some with '
                f'--annotations and --images.'
            )
        paths = root / dataset.ann_file, root / dataset.data_prefix.img
    for path in paths:
        if not path.exists():
            raise UserError(f'There is no {path}; check the path.')
    return paths


def main() -> None:
    """Measures and prints a table."""
    args = parse_args()
    use_safe_loading()
    console = Console(highlight=False)
    with one_sentence_errors('points_on_objects'):
        annotations, images = find_data(args)
        coco = COCO(str(annotations))
        model = load_model(
            load_config(args.config, args.cfg_options), args.checkpoint
        )
        found = []
        ids = sorted(i for i in coco.getImgIds() if coco.getAnnIds(i))
        ids = ids[:: max(len(ids) // args.count, 1)][: args.count]
        for image_id in track(ids, 'Pictures', console=console):
            known = coco.loadAnns(coco.getAnnIds(image_id))
            mask = sum(coco.annToMask(one) for one in known) > 0
            name = coco.imgs[image_id]['file_name']
            picture = load_picture(model, images / name)
            records = record(model, picture)
            found += [on_objects(one, mask) for one in records.values()]
    names = 'reference', 'points', 'attention'
    table = Table(
        Column('block', no_wrap=True),
        'area of objects',
        *names,
        'attention / area',
    )
    for one in mean_on_objects(found):
        shares = [getattr(one, name) for name in ('area', *names)]
        table.add_row(
            f'stage {one.stage}, block {one.block}',
            *(f'{100 * share:.1f} %' for share in shares),
            f'{one.attention / max(one.area, 1e-9):.2f}',
        )
    console.print(table)
    console.print(
        f'Inside the masks of objects, mean of {len(ids)} pictures: shares of '
        f'the area, of the reference points, of the sampled points and of the '
        f'attention of all queries. By chance all would be the same.'
    )


if __name__ == '__main__':
    main()
