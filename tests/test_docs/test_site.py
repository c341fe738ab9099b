# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The documentation site builds without a warning and has no dead link."""

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest

for package in ('mkdocs', 'material', 'mkdocstrings'):
    pytest.importorskip(package)
pytestmark = pytest.mark.slow  # one build, about 15 s, serves all of them
ROOT = Path(__file__).parents[2]
HOST = 'https://site.invalid/'
# Elements whose address is fetched when a page is opened.
FETCHED = {'script', 'link', 'img', 'iframe', 'source', 'video'}


class Page(HTMLParser):
    """Addresses, anchors and headings of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors, self.headings = [], set(), {}
        self.words, self._inside = [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if 'id' in values:
            self.anchors.add(values['id'])
        if tag == 'a' and 'name' in values:
            self.anchors.add(values['name'])
        for key in ('href', 'src'):
            if values.get(key):
                self.links.append((tag, values[key]))
        if tag in ('h1', 'h2', 'h3', 'h4'):
            self._inside = tag
            self.headings.setdefault(tag, []).append('')

    def handle_endtag(self, tag):
        if tag == self._inside:
            self._inside = None

    def handle_data(self, data):
        self.words.append(data)
        if self._inside:
            self.headings[self._inside][-1] += data


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp('site') / 'html'
    done = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '-d', folder],
        cwd=ROOT,
        env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope='module')
def pages(site):
    return {
        path.relative_to(site).as_posix(): Page(path.read_text())
        for path in site.rglob('*.html')
        if path.name != 'explorer.html' and 'assets' not in path.parts
    }


def test_no_link_is_dead(site, pages):
    dead, seen = [], 0
    for name, page in pages.items():
        base = urljoin(HOST, name)
        for _, link in page.links:
            address, anchor = urldefrag(urljoin(base, link))
            if not address.startswith(HOST):
                continue
            seen += 1
            path = unquote(urlsplit(address).path).lstrip('/')
            if not path or path.endswith('/'):
                path += 'index.html'
            if name == '404.html':  # its links start at the host's top
                continue
            if not (site / path).is_file():
                dead.append((name, link))
            elif anchor and not anchor.startswith('__'):
                there = pages.get(path)
                if there and unquote(anchor) not in there.anchors:
                    dead.append((name, link))
    assert not dead
    assert seen > 5000


def test_opening_a_page_asks_no_other_server(pages, site):
    for name, page in pages.items():
        for tag, link in page.links:
            if tag in FETCHED and urlsplit(link).netloc:
                raise AssertionError((name, tag, link))
    for style in site.rglob('*.css'):
        text = style.read_text()
        assert 'url(http' not in text and 'url(//' not in text
        assert '@import' not in text


def test_every_page_has_one_title(pages):
    for name, page in pages.items():
        if name != '404.html':
            assert len(page.headings['h1']) == 1, name


@pytest.mark.parametrize(
    ('words', 'page'),
    [
        ('PointsHook', 'api/'),
        ('LayerDecay', 'api/'),
        ('out of memory', 'troubleshooting/'),
        ('cite', ''),
        ('mask-rcnn_dat-t_fpn_1x_coco', 'repo/configs/'),
        ('UserError', 'api/'),
        ('MMDAT_ATTN_BACKEND', 'api/'),
    ],
)
def test_search_finds(site, words, page):
    index = json.loads((site / 'search/search_index.json').read_text())
    found = {
        entry['location'].partition('#')[0]
        for entry in index['docs']
        if words.lower() in (entry['title'] + entry['text']).lower()
    }
    assert any(name.startswith(page) for name in found)
    # Files of code would bury the pages that explain.
    assert not any('.py' in name for name in found)


def test_questions_are_headings(pages):
    questions = pages['faq/index.html'].headings['h2']
    assert len(questions) > 10
    assert all(q.rstrip('¶').endswith('?') for q in questions)
