# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""A file that cannot be written is told before the work."""

import os

import pytest

from mmdat.utils.errors import UserError
from mmdat.utils.output_file import check_output_file


def test_files_that_can_be_written(tmp_path):
    check_output_file(tmp_path / 'new' / 'folders' / 'a.png')
    (tmp_path / 'b.png').write_text('old')
    check_output_file(str(tmp_path / 'b.png'))
    assert not (tmp_path / 'new').exists()


def test_files_that_cannot(tmp_path):
    (tmp_path / 'file').write_text('')
    for out, words in (
        (tmp_path, 'is a folder'),
        (tmp_path / 'file' / 'a.png', 'is a file'),
        (tmp_path / 'file' / 'b' / 'a.png', 'is a file'),
        (tmp_path / ('x' * 300 + '.png'), 'must name a file'),
    ):
        with pytest.raises(UserError, match=words) as told:
            check_output_file(out, '--draw')
        assert str(told.value).startswith('--draw must')


@pytest.mark.skipif(os.getuid() == 0, reason='root may write anywhere')
def test_folders_of_others(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match='cannot'):
        check_output_file(tmp_path / 'a.png')
