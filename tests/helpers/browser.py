# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Opening a page in a headless Chromium, if there is one."""

import json
import os
import re
import shutil
import subprocess
from html import unescape

import pytest

NAMES = 'chromium', 'chromium-browser', 'google-chrome', 'chrome'
CHROMIUM = os.environ.get('CHROMIUM') or next(
    filter(None, map(shutil.which, NAMES)), None
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None,
    reason='there is no Chromium; apt-get install chromium would do',
)

# What the page says is written into it once it is ready.
HARNESS = """
<script>
const told = [], wrong = [];
window.addEventListener('error', e => wrong.push(e.message));
window.addEventListener('unhandledrejection', e => wrong.push(`${e.reason}`));
window.addEventListener('securitypolicyviolation', e => wrong.push(
  `wanted ${e.blockedURI} for ${e.violatedDirective}`));
const at = (x, y, type, more = {}) => {
  const [clientX, clientY] = explorer.toScreen(x, y);
  document.elementFromPoint(clientX, clientY).dispatchEvent(new PointerEvent(
    type, {clientX, clientY, bubbles: true, pointerType: 'mouse', ...more}));
};
const press = key => window.dispatchEvent(new KeyboardEvent(
  'keydown', {key, bubbles: true}));
explorer.ready.then(async () => { STEPS }).catch(
  e => wrong.push(`${e}`)).then(() => {
  const out = document.createElement('pre');
  out.id = 'told';
  out.textContent = JSON.stringify({told, wrong});
  document.body.append(out);
});
</script>
</body>"""


def visit(page, folder, steps, size=(1100, 800), screenshot=None):
    """Opens a page and does something there.

    Args:
        page: HTML.
        folder: Where files may be put.
        steps: JavaScript that calls ``told.push(...)``, ``at(x, y, event)``
            with pixels of the picture, and ``press(key)``.
        size: Of the window.
        screenshot: File to write as well.

    Returns:
        What was told.
    """
    path = folder / 'visited.html'
    path.write_text(page.replace('</body>', HARNESS.replace('STEPS', steps)))
    command = [
        CHROMIUM,
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        f'--user-data-dir={folder / "profile"}',
        f'--window-size={size[0]},{size[1]}',
        '--virtual-time-budget=20000',
    ]
    last = '--dump-dom'
    if screenshot is not None:
        last = f'--screenshot={screenshot}'
    done = subprocess.run(
        [*command, last, path.as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if screenshot is not None:
        return None
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    content = json.loads(unescape(found[1]))
    assert content['wrong'] == []
    return content['told']
