# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Which cases are compared with each other: groups of one setting each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

from ...models import DAT
from .attention import OPS, PLAIN, USUAL_SIZES
from .cases import MODES, Setting, Subject
from .ratios import Baseline

REFERENCE = 'reference'
DETECTION = (800, 1344)
PRESETS = ('cpu', 'gpu')

Shape = tuple[int, int]


@dataclass(frozen=True)
class Group:
    """Subjects that are compared in one setting."""

    setting: Setting
    subjects: tuple[Subject, ...]


def _subjects(
    names: Iterable[str], backends: Sequence[str | None]
) -> tuple[Subject, ...]:
    """Ours with each backend, peers once: they have none to choose."""
    return tuple(
        Subject(name, backend)
        for name in names
        for backend in (
            backends
            if name in DAT.arch_zoo or name in OPS.values()
            else [None]
        )
    )


def backbone_groups(
    names: Sequence[str],
    shapes: Sequence[Shape],
    batches: Sequence[int] = (1,),
    modes: Sequence[str] = ('inference',),
    backends: Sequence[str | None] = (None,),
) -> list[Group]:
    """Every combination of backbones, shapes, batches, modes and backends."""
    return [
        Group(Setting(mode, batch, *shape), _subjects(names, backends))
        for mode, shape, batch in product(modes, shapes, batches)
    ]


def attention_groups(
    kinds: Sequence[str] = tuple(OPS),
    batch: int = 1,
    modes: Sequence[str] = MODES,
    backends: Sequence[str | None] = (None, REFERENCE),
) -> list[Group]:
    """The attentions alone, at the sizes of detection.

    Args:
        kinds: Of ``'deformable'`` and ``'neighborhood'``.
        batch: Maps.
        modes: Of :data:`mmdat.analysis.benchmark.cases.MODES`.
        backends: Backends of the op; deformable attention is also held
            against plain fused attention without bias.
    """
    groups = []
    for kind in kinds:
        names = [OPS[kind]] + [PLAIN] * (kind == 'deformable')
        for (map_size, sizes), mode in product(USUAL_SIZES[kind], modes):
            setting = Setting(mode, batch, *map_size, sizes)
            groups.append(Group(setting, _subjects(names, backends)))
    return groups


def preset(name: str) -> list[Group]:
    """The groups behind the tables of the documentation.

    ``'cpu'``: DAT-T and DAT-T++ beside Swin-T at the sizes of detection,
    classification and twice the side of detection, and training steps.
    ``'gpu'``: training steps and inference at the size of detection, the
    fastest backends beside the plain PyTorch version of the same maths.
    """
    both = ['dat_t', 'dat_pp_t', 'swin_t']
    if name == 'gpu':
        compared = dict(backends=(None, REFERENCE))
        return [
            *backbone_groups(both, [DETECTION], [2], MODES, **compared),
            *attention_groups(batch=2),
        ]
    larger = (2 * DETECTION[0], 2 * DETECTION[1])
    crop = (224, 224)
    return [
        *backbone_groups(both, [DETECTION]),
        *backbone_groups(['dat_t', 'swin_t'], [crop], [8]),
        *backbone_groups(['dat_pp_t', 'swin_t'], [crop], [4]),
        *backbone_groups(both, [larger]),
        *backbone_groups(both, [(512, 512), DETECTION], modes=['train']),
        *attention_groups(),
    ]


def keep(
    groups: Iterable[Group],
    names: Sequence[str] | None = None,
    shapes: Sequence[Shape] | None = None,
    batches: Sequence[int] | None = None,
    modes: Sequence[str] | None = None,
) -> list[Group]:
    """Only what is asked for; None asks for everything."""
    kept = []
    for group in groups:
        setting = group.setting
        subjects = tuple(
            s for s in group.subjects if names is None or s.name in names
        )
        wanted = (
            subjects
            and (modes is None or setting.mode in modes)
            and (batches is None or setting.batch in batches)
            and (shapes is None or (setting.height, setting.width) in shapes)
        )
        if wanted:
            kept.append(replace(group, subjects=subjects))
    return kept


def also_compiled(groups: Iterable[Group]) -> list[Group]:
    """Adds every subject once more, through ``torch.compile``."""
    return [
        replace(
            group,
            subjects=tuple(
                replace(subject, compiled=compiled)
                for subject in group.subjects
                for compiled in (False, True)
            ),
        )
        for group in groups
    ]


def add_foreign(
    groups: Iterable[Group],
    foreign: Sequence[Subject],
    baselines: Sequence[Baseline],
) -> list[Group]:
    """Adds foreign backbones where they are to be compared.

    One that serves as baseline of some backbone only goes where that backbone
    is; all others go everywhere.
    """
    partners = {
        subject.name: {b.of for b in baselines if b.name == subject.name}
        for subject in foreign
    }
    added = []
    for group in groups:
        present = {subject.name for subject in group.subjects}
        guests = tuple(
            subject
            for subject in foreign
            if group.setting.attention is None
            and (
                not partners[subject.name]
                or partners[subject.name] & {None, *present}
            )
        )
        added.append(replace(group, subjects=group.subjects + guests))
    return added
