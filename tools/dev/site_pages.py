# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Files outside ``docs/`` become pages of the documentation site.

The pages link to configs, code and READMEs of this repository with relative
links, which work on any host of the repository. In the site each linked file
becomes a page: Markdown as it is, code with highlighting. So the site has no
dead link, and no link that leaves it for its own source.

mkdocs calls the functions that start with ``on_``.
"""

import json
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r'^( *)(`{3,})[^\n]*\n.*?^\1\2 *$', re.M | re.S)
INLINE = re.compile(r'`[^`\n]+`')
LINK = re.compile(r'(\]\()([^)\s]+)(\))|(^\[[^\]]+\]: )(\S+)()$', re.M)
PICTURES = ('.png', '.svg', '.webp', '.gif', '.html')
LANGUAGES = {
    '.py': 'python',
    '.sh': 'bash',
    '.yml': 'yaml',
    '.yaml': 'yaml',
    '.toml': 'toml',
    '.cff': 'yaml',
}
# Linked files in the order in which they were found: path -> page of the site.
_pages: dict[str, str] = {}


def site_path(path: str) -> str:
    """The source of the site's page for a file of the repository.

    Args:
        path: Relative to the top folder, with slashes.
    """
    if path == 'docs' or path.startswith('docs/'):
        return path.removeprefix('docs/')
    if (ROOT / path).is_dir():
        path = f'{path}/README.md'
    if path.endswith(('.md', *PICTURES)):
        return f'repo/{path}'
    return f'repo/{path}.md'


def repository_path(source: str) -> str:
    """The file of the repository that a page was made of."""
    for path, page in _pages.items():
        if page == source:
            return path
    return f'docs/{source}'


def links(text: str) -> list[re.Match]:
    """The links of a Markdown text, without those in code."""
    code = [m.span() for m in FENCE.finditer(text)]
    code += [m.span() for m in INLINE.finditer(text)]
    return [
        m
        for m in LINK.finditer(text)
        if not any(a <= m.start(2 if m[2] else 5) < b for a, b in code)
    ]


def target_of(link: str, path: str) -> str | None:
    """The file or folder that a link leads to; None if it leaves the tree.

    Args:
        link: The link, perhaps with an anchor.
        path: The file in which it stands, relative to the top folder.
    """
    name = link.partition('#')[0]
    if not name or ':' in name:
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), name))
    return None if target.startswith('..') else target


def on_files(files, config):
    """Adds a page for each linked file, and for those that these link to."""
    _pages.clear()
    in_nav = set(re.findall(r'repo/[^\s\'"]+', repr(config.nav)))
    waiting = [
        (f'docs/{file.src_uri}', Path(file.abs_src_path).read_text())
        for file in files.documentation_pages()
    ]
    waiting += [(path.name, '') for path in sorted(ROOT.glob('*.md'))]
    named = [page.removeprefix('repo/') for page in sorted(in_nav)]
    waiting += [
        (path if (ROOT / path).exists() else path.removesuffix('.md'), '')
        for path in named
    ]
    while waiting:
        path, text = waiting.pop()
        if path in _pages:
            continue
        if not path.startswith('docs/'):
            text = _add(path, files, config, in_nav)
        for match in links(text):
            target = target_of(match[2] or match[5], path)
            if target is None or target.startswith('docs/'):
                continue
            if (ROOT / target).is_dir():
                target = f'{target}/README.md'
            if target not in _pages and (ROOT / target).is_file():
                waiting.append((target, ''))
    return files


def notebook(text: str) -> str:
    """The cells of a notebook as Markdown, without outputs."""
    parts = []
    for cell in json.loads(text)['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'code':
            source = f'```python\n{source}\n```'
        parts.append(source)
    return '\n\n'.join(parts) + '\n'


def _add(path: str, files, config, in_nav: set[str]) -> str:
    """Adds the page of one file.

    Returns:
        Its text if it is Markdown, whose links are followed, or nothing.
    """
    source = _pages[path] = site_path(path)
    file = ROOT / path
    if path.endswith(PICTURES):
        files.append(File.generated(config, source, content=file.read_bytes()))
        return ''
    text = file.read_text(encoding='utf-8')
    page = text
    if not path.endswith('.md'):
        language = LANGUAGES.get(file.suffix, 'text')
        # Search shows pages that explain, not the code itself.
        page = (
            notebook(text)
            if path.endswith('.ipynb')
            else (
                f'---\ntitle: {file.name}\nsearch:\n  exclude: true\n---\n\n'
                f'# {file.name}\n\n`{path}`\n\n'
                f'``````{language}\n{text.rstrip()}\n``````\n'
            )
        )
    generated = File.generated(config, source, content=page)
    if source not in in_nav:
        generated.inclusion = InclusionLevel.NOT_IN_NAV
    files.append(generated)
    return text if path.endswith('.md') else ''


def on_page_markdown(markdown, page, config, files):
    """Lets links lead to the pages instead of the files."""
    source = page.file.src_uri
    path = repository_path(source)
    out, last = [], 0
    for match in links(markdown):
        group = 2 if match[2] else 5
        link = match[group]
        target = target_of(link, path)
        if target is None or not (ROOT / target).exists():
            continue
        anchor = link.partition('#')[2]
        new = posixpath.relpath(site_path(target), posixpath.dirname(source))
        out += [markdown[last : match.start(group)], new]
        out += [f'#{anchor}'] if anchor else []
        last = match.end(group)
    return ''.join((*out, markdown[last:]))
