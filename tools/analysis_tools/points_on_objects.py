# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Measures whether sampled points and attention concentrate on objects.

For each block it prints the share of the picture that masks of objects cover,
and the shares of the points and of the attention of all queries that lie in
the masks. Without arguments it uses the pictures in demo/.
"""

import argparse
from pathlib import Path

from pycocotools.coco import COCO
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from mmdat.checkpoints.loading import use_safe_loading
from mmdat.engine.arguments import OptionsAction
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
        'config', nargs='?', help='config; default: the model in demo/'
    )
    parser.add_argument('checkpoint', nargs='?', help='its weights')
    parser.add_argument('--data-root', help='folder of the data set')
    parser.add_argument(
        '--annotations',
        help='COCO JSON with masks; default: that of the test data',
    )
    parser.add_argument(
        '--images',
        help='folder of the pictures; default: that of the test data',
    )
    parser.add_argument(
        '--count', type=int, default=100, help='largest number of pictures'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        help='settings to override, key=value; lists as key="[a,b]"',
    )
    return parser.parse_args()


def find_data(args: argparse.Namespace) -> tuple[Path, Path]:
    """Returns the file of annotations and the folder of pictures."""
    demo = use_demo_files(args, ROOT, None)
    cfg = load_config(args.config, args.cfg_options)
    if args.data_root is not None:
        set_data_root(cfg, args.data_root)
    if args.annotations is not None or args.images is not None:
        if args.annotations is None or args.images is None:
            raise UserError(
                '--annotations and --images must be given together; one is '
                'missing.'
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
                f'The tool reads masks from a COCO JSON file; the test data '
                f'of {args.config} have none, so give --annotations and '
                f'--images.'
            )
        paths = root / dataset.ann_file, root / dataset.data_prefix.img
    for path in paths:
        if not path.exists():
            raise UserError(f'{path} does not exist; check the path.')
    return paths


def main() -> None:
    """Prints the table."""
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
        f'Shares of the area, the reference points, the sampled points and '
        f'the attention of all queries inside the masks of objects, mean of '
        f'{len(ids)} pictures. Without a preference for objects they would '
        f'all be equal.'
    )


if __name__ == '__main__':
    main()
