#!/usr/bin/env python3
"""Draws docs/images/demo.svg, the picture that moves in the README: `seriatim demo` as it ran, and then the status page.

Usage: docs/images/demo.py [SERIATIM], by default target/debug/seriatim. The lines and their times are those of a run. The page is
docs/images/page-light.png.
"""

import base64
import html
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
WIDTH, LINE, LEFT, TOP = 880, 22, 24, 78
# How many characters a line of the terminal has.
COLUMNS = 96
# After the last line, and for the page, in seconds.
PAUSE, PAGE = 2.0, 6.0
COLOURS = {"turn 1": "#7ee787", "turn 2": "#ffa657", "turn 3": "#79c0ff"}


def record(program):
    """The lines of the demo's three turns, each with its time since the first one, in seconds."""
    command = [program, "demo", "--once", "--listen", "127.0.0.1:0"]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        for line in demo.stdout:
            if line.startswith("turn "):
                lines.append((time.monotonic(), line.rstrip()))
    if demo.returncode or not lines:
        sys.exit(f"{' '.join(command)} failed: {demo.returncode}")
    return [(at - lines[0][0], line) for at, line in lines]


def shown(lines):
    """One line for each request, status and error; the words of a stream are one line that grows."""
    streams = {}
    for at, line in lines:
        turn, text = line.split(":", 1)
        name, text = turn[:6], text.strip()
        if word := re.fullmatch(r'data: \{"text": "(.*)"\}', text):
            if name not in streams:
                streams[name] = len(streams)
                yield at, name, ("stream", [])
            yield at, name, ("word", word[1])
        elif text.startswith("POST "):
            yield at, name, ("line", f"$ curl -N …{text[5:]}")
        elif text.startswith("{"):
            error = re.search(r'"error":"[^"]*"', text)
            yield at, name, ("line", "{" + f'"success":false,{error[0]}, …' + "}")
        else:
            yield at, name, ("line", text)


def draw(lines, page):
    end = max(at for at, _ in lines) + PAUSE
    loop = end + PAGE
    texts, rules, rows, words = [], [], 0, {}

    def appears(at):
        rules.append(f"@keyframes k{len(rules)}{{0%,{at / loop:.2%}{{opacity:0}}{at / loop + 0.001:.2%},100%{{opacity:1}}}}")
        return f'style="animation:k{len(rules) - 1} {loop:.1f}s infinite"'

    for at, name, (kind, text) in shown(lines):
        colour = COLOURS[name]
        if kind == "word":
            row, column = words[name]
            words[name] = (row, column + len(text) + 1)
        else:
            row, column = rows, 8
            rows += 1
            y = TOP + row * LINE
            texts.append(f'<text x="{LEFT}" y="{y}" fill="{colour}" font-weight="bold" {appears(at)}>{name}</text>')
            if kind == "stream":
                words[name] = (row, 8 + len("data: "))
                text = "data:"
        # A Chinese character takes two columns.
        wide = sum(1 if ord(c) < 0x2E80 else 2 for c in text)
        if wide > COLUMNS - column:
            text = text[: COLUMNS - column - 1] + "…"
        x, y = LEFT + column * 8.4, TOP + row * LINE
        fill = "#e6edf3" if name != "turn 2" or kind == "line" and "429" not in text else colour
        texts.append(f'<text x="{x:.1f}" y="{y}" fill="{fill}" {appears(at)}>{html.escape(text)}</text>')
    height = TOP + rows * LINE + 10
    picture = base64.b64encode(page).decode()
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"
  aria-label="The first turn of a session streams. The second one gets 429 meanwhile. The third one streams after it. Then the status page.">
<style>
text {{ font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, "Noto Sans Mono CJK SC", monospace; white-space: pre }}
{"".join(rules)}
@keyframes page{{0%,{end / loop:.2%}{{opacity:0}}{(end + 0.4) / loop:.2%},100%{{opacity:1}}}}
.page {{ animation: page {loop:.1f}s infinite }}
@media (prefers-reduced-motion: reduce) {{ text {{ animation: none !important }} .page {{ display: none }} }}
</style>
<rect width="{WIDTH}" height="{height}" rx="10" fill="#0d1117"/>
<circle cx="24" cy="22" r="6" fill="#ff5f57"/><circle cx="44" cy="22" r="6" fill="#febc2e"/><circle cx="64" cy="22" r="6" fill="#28c840"/>
<text x="{LEFT}" y="52" fill="#8b949e">$ seriatim demo</text>
{"".join(texts)}
<g class="page"><rect width="{WIDTH}" height="{height}" rx="10" fill="#f6f8fa"/>
<image href="data:image/png;base64,{picture}" x="10" y="10" width="{WIDTH - 20}" height="{height - 20}" preserveAspectRatio="xMidYMin slice"/></g>
</svg>
"""


lines = record(sys.argv[1] if len(sys.argv) > 1 else "target/debug/seriatim")
(HERE / "demo.svg").write_text(draw(lines, (HERE / "page-light.png").read_bytes()))
