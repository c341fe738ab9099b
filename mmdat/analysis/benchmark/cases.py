# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What is measured: a subject, in a setting, under conditions."""

from dataclasses import dataclass

MODES = ('inference', 'train')


@dataclass(frozen=True)
class Subject:
    """Somebody to be measured.

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
    def pixels(self) -> int:
        """Pixels, or queries, of the whole batch."""
        return self.batch * self.height * self.width

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
