# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Running what a set-up runs; a failure ends it with one sentence."""

import subprocess
import sys
from pathlib import Path
from typing import NoReturn

NAMES = {'bootstrap': 'setup'}


def stop(sentence: str) -> NoReturn:
    """Ends the program with a sentence."""
    program = Path(sys.argv[0]).stem
    sys.exit(f'{NAMES.get(program, program)}: {sentence}')


def run(*command: object, **kwargs: object) -> None:
    """Runs a command whose output the user sees."""
    try:
        subprocess.run([str(c) for c in command], check=True, **kwargs)
    except subprocess.CalledProcessError as error:
        stop(
            f'"{" ".join(map(str, command))}" ended with status '
            f'{error.returncode}; its output above says why. Fix that and '
            f'run the same command again; finished steps are kept.'
        )


def pip(python: Path, *arguments: object, **kwargs: object) -> None:
    """Runs the pip of a Python."""
    run(
        python,
        '-m',
        'pip',
        '--disable-pip-version-check',
        *arguments,
        **kwargs,
    )


def ask(python: Path, code: str) -> str:
    """What a Python prints for some code."""
    result = subprocess.run(
        [python, '-c', code], capture_output=True, text=True
    )
    if result.returncode:
        stop(
            f'the environment of {python} does not work '
            f'({result.stderr[-300:]}); remove it and run the same command '
            f'again.'
        )
    return result.stdout.strip()


def mend_opencv(python: Path, headless: str) -> None:
    """Makes `cv2` importable on machines without a screen's libraries.

    Two builds of OpenCV share a folder; there only the headless one can be
    imported, so it goes on top.

    Args:
        python: Of the environment.
        headless: The requirement, ``opencv-python-headless==...``.
    """
    works = subprocess.run([python, '-c', 'import cv2'], capture_output=True)
    if works.returncode:
        pip(python, 'install', '--no-deps', '--force-reinstall', headless)
