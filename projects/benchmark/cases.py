# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What is compared: subjects, in settings, under conditions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

from mmdat.models import DAT
from mmdat.utils.errors import UserError

MODES = ('inference', 'train')
PLAIN = 'sdpa'
OPS = {
    'deformable': 'deformable_attention',
    'neighborhood': 'neighborhood_attention',
}
REFERENCE = 'reference'
DETECTION = (800, 1344)
PRESETS = ('cpu', 'gpu')

Shape = tuple[int, int]


@dataclass(frozen=True)
class Subject:
    """A backbone or an attention to measure.

    Attributes:
        name: Of a backbone, peer, attention or foreign model.
        backend: Attention backend to insist on, None to let mmdat choose.
        factory: ``path/to/file.py:function`` that builds a foreign model.
        compiled: Whether it goes through ``torch.compile``.
    """

    name: str
    backend: str | None = None
    factory: str | None = None
    compiled: bool = False

    @property
    def label(self) -> str:
        """How it is called in tables, ``name@backend+compile``."""
        backend = f'@{self.backend}' if self.backend else ''
        return self.name + backend + '+compile' * self.compiled


@dataclass(frozen=True)
class AttentionSizes:
    """An attention without the backbone around it.

    Attributes:
        kind: ``'deformable'`` or ``'neighborhood'``.
        heads: Heads.
        groups: Groups of heads that share their keys; deformable only.
        key_size: (Hk, Wk); deformable only.
        map_size: (H, W) in training, gives the bias table its size;
            deformable only.
        convention: Coordinates, ``'dat'`` or ``'dat_pp'``; deformable only.
        kernel_size: Side of a neighbourhood; neighborhood only.
        head_dim: Channels of a head.
    """

    kind: str
    heads: int
    groups: int = 1
    key_size: tuple[int, int] = (0, 0)
    map_size: tuple[int, int] = (14, 14)
    convention: str = 'dat'
    kernel_size: int = 7
    head_dim: int = 32


@dataclass(frozen=True)
class Setting:
    """What cases must have in common to be compared.

    Attributes:
        mode: ``'inference'``, a forward pass without gradients, or
            ``'train'``, forward and backward.
        batch: Images.
        height: Of the image, or of the map of queries of an attention.
        width: As `height`.
        attention: For an attention alone, its sizes.
    """

    mode: str
    batch: int
    height: int
    width: int
    attention: AttentionSizes | None = None

    @property
    def label(self) -> str:
        """How it is called in tables."""
        sizes = self.attention
        if sizes is None:
            return f'{self.mode}, {self.batch}x3x{self.height}x{self.width}'
        where = f'{self.height}x{self.width}'
        what = f'{sizes.kind} attention, batch {self.batch}'
        if sizes.kind == 'deformable':
            rows, columns = sizes.key_size
            what += (
                f', {self.height * self.width} queries ({where}), '
                f'{rows * columns} keys ({rows}x{columns}), '
                f'{sizes.heads} heads, {sizes.groups} groups'
            )
        else:
            what += f', {where}, kernel {sizes.kernel_size}'
            what += f', {sizes.heads} heads'
        return f'{self.mode}, {what}'


@dataclass(frozen=True)
class Conditions:
    """What all cases of a run have in common.

    Attributes:
        device: ``'cpu'``, ``'cuda'``, ...
        amp: ``'bf16'`` or ``'fp16'`` for autocast, None for float32.
        threads: Threads of one case on the CPU, None for torch's choice.
        min_seconds: A case shorter than this is repeated within a round.
        memory_limit: Bytes a case may take beyond its weights on the CPU,
            None for no limit.
        load: Load average of the machine before the run, None if not known.
    """

    device: str = 'cpu'
    amp: str | None = None
    threads: int | None = None
    min_seconds: float = 0.2
    memory_limit: int | None = None
    load: float | None = None

    @property
    def dtype(self) -> str:
        """Precision, for tables."""
        names = {'bf16': 'bfloat16 autocast', 'fp16': 'float16 autocast'}
        return names.get(self.amp, 'float32')


@dataclass(frozen=True)
class Case:
    """One measurement."""

    subject: Subject
    setting: Setting
    conditions: Conditions


@dataclass
class Measurement:
    """What came of a case.

    Attributes:
        case: The case.
        status: ``'ok'``, or why there is no measurement.
        seconds: Time of each round.
        memory: Bytes at the peak, weights and input not counted; None if not
            measured.
        memory_source: Where that number comes from, or why there is none.
        parameters: Learnable numbers.
    """

    case: Case
    status: str = 'ok'
    seconds: tuple[float, ...] = ()
    memory: int | None = None
    memory_source: str = ''
    parameters: int | None = None


# Of stages of the tiny models at 800 x 1344: (H, W) of the queries, the rest.
USUAL_SIZES = {
    'deformable': (
        # Stage 3 of DAT-T, whose keys are as many as its queries.
        ((50, 84), AttentionSizes('deformable', 12, 3, (50, 84), (14, 14))),
        # Stage 1 of DAT-T++.
        (
            (200, 336),
            AttentionSizes('deformable', 2, 1, (25, 42), (56, 56), 'dat_pp'),
        ),
    ),
    'neighborhood': (
        ((200, 336), AttentionSizes('neighborhood', 2)),
        ((200, 336), AttentionSizes('neighborhood', 3)),
    ),
}


@dataclass(frozen=True)
class Baseline:
    """The subject to compare others with.

    Attributes:
        name: Label of a subject; or ``@backend``, the same subject with this
            backend, not compiled; ``@auto`` is the backend mmdat chooses.
        of: Name of the subjects to be compared with it, None for all.
    """

    name: str
    of: str | None = None

    def label_for(self, measurement: Measurement) -> str | None:
        """Label of the subject to compare with, None if there is none."""
        subject = measurement.case.subject
        if self.of not in (None, subject.name):
            return None
        if self.name.startswith('@'):
            return subject.name + self.name.removesuffix('@auto')
        return self.name


def parse_baseline(text: str) -> Baseline:
    """Reads ``NAME``, ``@BACKEND``, ``OF=NAME``.

    Raises:
        UserError: None of these.
    """
    of, equals, name = text.rpartition('=')
    if not name or name == '@' or (equals and not of):
        raise UserError(
            f'A baseline is given as NAME, @BACKEND or OF=NAME; got {text!r}.'
        )
    return Baseline(name, of or None)


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
        modes: Of ``MODES``.
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
