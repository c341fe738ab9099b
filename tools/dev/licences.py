# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Says under which licences the locked packages are, from their metadata.

Ends with status 1 if one is under a licence that is not on the list below, or
under one that cannot be told: ``python tools/dev/licences.py``.
"""

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

LOCK = Path(__file__).resolve().parents[2] / 'requirements' / 'lock.txt'

# What a licence of a family is called in metadata, first match first, and
# what has to be known of the family. No other is allowed.
PERMISSIVE, NOTED = 'permissive', 'noted'
FAMILIES = (
    (r'AGPL|Affero', None, 'AGPL'),
    (r'LGPL|Lesser General Public', NOTED, 'LGPL'),
    (r'\bGPL|GNU General Public', None, 'GPL'),
    (r'MPL-?2|Mozilla Public License 2', NOTED, 'MPL-2.0'),
    # Comes with torch, for machines with a GPU; may be passed on unchanged.
    (r'NVIDIA[- ]Proprietary|NVIDIA .*Software', NOTED, 'NVIDIA'),
    (r'MIT-CMU|HPND|Historical Permission', PERMISSIVE, 'HPND'),
    (r'\bMIT\b', PERMISSIVE, 'MIT'),
    (r'Apache', PERMISSIVE, 'Apache-2.0'),
    (r'BSD', PERMISSIVE, 'BSD'),
    (r'\bISC', PERMISSIVE, 'ISC'),
    (r'PSF|Python Software Foundation|CNRI-Python', PERMISSIVE, 'PSF'),
    (r'Zlib|Unlicense|CC0|Public Domain', PERMISSIVE, 'public domain'),
)
# Packages whose metadata names no licence.
TOLD_ELSEWHERE = {
    # An empty package that depends on others.
    'cuda-toolkit': 'LicenseRef-NVIDIA-Proprietary',
}


def locked() -> list[str]:
    """Names of the locked packages that belong on this machine."""
    names = []
    for line in LOCK.read_text().splitlines():
        if line and not line.startswith(('#', ' ')):
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or marker.evaluate():
                names.append(requirement.name)
    return names


def licence_of(package: Distribution) -> str:
    """What the metadata of a package says, in a line; empty if nothing.

    The field of PEP 639, else the classifiers, else the old free field, where
    some have put the whole text: its first line that names a licence counts.
    """
    metadata = package.metadata
    if metadata.get('License-Expression'):
        return metadata['License-Expression']
    free = (metadata.get('License') or '').splitlines()
    free = [line.strip() for line in free]
    named = [
        line.rpartition('::')[2].strip()
        for line in metadata.get_all('Classifier') or []
        if line.startswith('License :: ')
    ]
    if named and named != ['Other/Proprietary License']:
        return ' AND '.join(named)
    known = [line for line in free if judge(line)[1]]
    return next(iter(known), TOLD_ELSEWHERE.get(package.name, ''))


def judge(licence: str) -> tuple[str | None, str]:
    """Whether a licence is allowed.

    Args:
        licence: Such as ``Apache-2.0 OR BSD-2-Clause``.

    Returns:
        How it is allowed, None if it is not; and the families, '' if one
        cannot be told. Of licences joined by ``OR`` the best counts, by
        ``AND`` the worst.
    """
    # Inside brackets a choice is taken for a sum, which errs to the safe side.
    either = r'\s+OR\s+' if '(' not in licence else r'(?!)'
    choices = []
    for choice in re.split(either, licence):
        parts = [
            _family(part) for part in re.split(r'\s+(?:AND|OR)\s+', choice)
        ]
        kinds = {kind for kind, _ in parts}
        kind = PERMISSIVE if kinds == {PERMISSIVE} else NOTED
        names = ' AND '.join(dict.fromkeys(name for _, name in parts))
        known = all(name for _, name in parts)
        choices.append((None if None in kinds else kind, names * known))
    order = (PERMISSIVE, NOTED, None)
    return min(choices, key=lambda choice: order.index(choice[0]))


def _family(licence: str) -> tuple[str | None, str]:
    for pattern, kind, name in FAMILIES:
        if re.search(pattern, licence, re.IGNORECASE):
            return kind, name
    return None, ''


def rows(names: list[str]) -> list[tuple[str, str, str, str]]:
    """Name, version, families and verdict of each package that is there."""
    found = []
    for name in names:
        try:
            package = distribution(name)
        except PackageNotFoundError:
            found.append((name, '', '', 'not installed'))
            continue
        said = licence_of(package)
        kind, family = judge(said)
        verdict = kind or ('not allowed' if family else 'unknown')
        found.append((name, package.version, family or said, verdict))
    return found


def main() -> int:
    """Prints the table."""
    table = rows(locked())
    widths = [max(map(len, column)) for column in zip(*table)]
    for row in table:
        print('  '.join(map(str.ljust, row, widths)).rstrip())
    bad = [row[0] for row in table if row[3] in ('not allowed', 'unknown')]
    if bad:
        print(
            f'licences: {", ".join(bad)} may not be used, or say nothing of '
            f'their licence; see FAMILIES in {Path(__file__).name}.',
            file=sys.stderr,
        )
    return 1 if bad else 0


if __name__ == '__main__':
    sys.exit(main())
