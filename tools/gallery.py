"""The differences of all examples from their bases, as one page to read: coloured, without network, from a file.

    python tools/gallery.py [--out runs/gallery.html]     # or: make gallery
"""
from __future__ import annotations

import argparse
import ast
import difflib
import io
import keyword
import re
import sys
import tokenize
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from list_examples import PATH_LINE, ROOT, base_of, changed_lines, examples, read_fields

from common.console import guard, say
from common.files import write_file

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>Vinery: the examples as differences</title><style>
:root{color-scheme:light dark;--line:light-dark(#d8dbe0,#3a3e45);--quiet:light-dark(#5b6169,#a3a9b1);--link:light-dark(#0b57a4,#8ab8f2)}
body{font:16px/1.5 sans-serif;margin:1rem auto;padding:0 1rem;max-width:76rem;background:light-dark(#fff,#16181c);
color:light-dark(#1c1e21,#e8eaed)} a{color:var(--link)} .quiet,nav span,.up,dt,summary{color:var(--quiet)}
h2{margin:3rem 0 .3rem;border-top:1px solid var(--line);padding-top:1rem;overflow-wrap:anywhere} small{font-weight:normal}
nav{columns:12rem;column-gap:2rem} nav div{break-inside:avoid} p{max-width:48rem;margin:.5rem 0} summary{cursor:pointer}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;max-width:56rem;margin:.5rem 0} dd{margin:0}
.diff,.doc,code{font:13px/1.45 ui-monospace,Menlo,Consolas,monospace} .doc{white-space:pre-wrap;max-width:60rem}
.diff{border:1px solid var(--line);border-radius:6px;overflow:hidden;margin-top:.7rem}
.diff div{white-space:pre-wrap;overflow-wrap:anywhere;padding:0 .6rem 0 1.6rem;min-height:1.45em;position:relative}
.diff div::before{position:absolute;left:.6rem} .diff .at{background:light-dark(#f1f3f6,#22262c);color:var(--quiet);padding-left:.6rem}
.add{background:light-dark(#e3f5e6,#16331f)} .add::before{content:"+";color:light-dark(#1a7f37,#57c273)}
.del{background:light-dark(#fdeaea,#3b1d20)} .del::before{content:"\\2212";color:light-dark(#b3261e,#f2938c)}
.k{color:light-dark(#8839a8,#d3a1ea)} .s{color:light-dark(#8a4b08,#e5b567)} .c{color:light-dark(#4f5f55,#9fb2a6);font-style:italic}
.d{color:var(--link);font-weight:600} .n{color:light-dark(#0f6b6b,#7fd0c8)}
@media(max-width:40rem){.diff,.doc{font-size:11.5px} .diff div{padding-left:1.2rem} .diff div::before{left:.35rem} dl{display:block}
dt{margin-top:.3rem}}</style></head><body id="top"><h1>The examples as differences</h1>
<p>Each method is a whole script in <code>examples/</code>: a copy of one of the four scripts, in which the method was changed. This page
shows what was changed. Lines with a minus are those of the base, lines with a plus those of the example.</p>
<p class="quiet">The numbers are added and removed lines, docstrings, imports and empty lines apart. Made by
<code>python tools/gallery.py</code>.</p>
<nav>NAV</nav>
BODY
</body></html>
"""


def coloured(text: str) -> list[str]:
    """The lines of Python source as HTML: spans of class k (keyword), s (string), c (comment), n (number), d (name that is defined)."""
    lines = text.splitlines()
    marks: list[list[tuple[int, int, str]]] = [[] for _ in lines]
    before = ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[token.type]
        name = {"COMMENT": "c", "NUMBER": "n"}.get(kind, "s" if "STRING" in kind else "")
        if kind == "NAME":
            name = "k" if keyword.iskeyword(token.string) else "d" if before in ("def", "class") else ""
        before = token.string
        (first, left), (last, right) = token.start, token.end
        for row in range(first, last + 1) if name else []:
            marks[row - 1].append((left if row == first else 0, right if row == last else len(lines[row - 1]), name))
    out = []
    for line, own in zip(lines, marks, strict=True):
        html, at = "", 0
        for left, right, name in own:
            html += f'{escape(line[at:left])}<span class="{name}">{escape(line[left:right])}</span>'
            at = right
        out.append(html + escape(line[at:]))
    return out


def code_of(text: str) -> tuple[str, int]:
    """A script without its docstring and the lines that find common/, and the number of the first line that is left."""
    first = ast.parse(text).body[0].end_lineno or 0
    path = f"import sys\n\n{PATH_LINE}\n\n"
    return "".join(text.splitlines(keepends=True)[first:]).replace(path, "", 1), first + 1


def difference(text: str, base: str) -> str:
    """The difference of two scripts as HTML, with three lines around each change and the function that it is in."""
    (here, _), (there, skipped) = code_of(text), code_of(base)
    old, new, shown_old, shown_new = there.splitlines(), here.splitlines(), coloured(there), coloured(here)
    rows = []
    for group in difflib.SequenceMatcher(None, old, new, autojunk=False).get_grouped_opcodes(3):
        changed = next(i for kind, i, *_ in group if kind != "equal")
        opened = next((line for line in reversed(old[:changed + 1]) if re.match(r"[^\s)]", line)), "")  # the last line that is not indented
        inside = re.match(r"(?:def|class) (\w+)", opened)
        rows.append(f'<div class="at">line {group[0][1] + skipped}{f", in {inside[1]}" if inside else ""}</div>')
        for kind, i, j, m, n in group:
            if kind == "equal":
                rows += [f"<div>{line}</div>" for line in shown_old[i:j]]
            else:
                rows += [f'<div class="del">{line}</div>' for line in shown_old[i:j]]
                rows += [f'<div class="add">{line}</div>' for line in shown_new[m:n]]
    return "\n".join(rows)


def page() -> str:
    """The whole page."""
    nav, body = [], []
    for path in examples():
        text = path.read_text(encoding="utf-8")
        fields = read_fields(text)
        base, _ = base_of(fields)
        original = base.read_text(encoding="utf-8")
        added, removed = changed_lines(text, original)
        name, count = path.stem, f"+{added} \u2212{removed}"
        about = "".join(f"<dt>{field.lower()}</dt><dd>{escape(fields[field])}</dd>" for field in ("Paper", "Changes", "Cost", "When"))
        doc = escape(ast.get_docstring(ast.parse(text)) or "")
        nav.append(f'<div><a href="#{name}">{name}</a> <span>{count}</span></div>')
        body.append(f"""<section><h2 id="{name}">{name} <small class="quiet">{count} to {base.name}</small></h2>
<p>{escape(fields["Method"])}</p><dl>{about}</dl>
<details><summary>its docstring</summary><div class="doc">{doc}</div></details>
<div class="diff">{difference(text, original)}</div>
<a class="up" href="#top">to the top</a></section>""")
    return PAGE.replace("NAV", "\n".join(nav)).replace("BODY", "\n".join(body))


def main() -> None:
    guard()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gallery.html", help="the page (default: runs/gallery.html)")
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, page())
    say(f"wrote {out}: {len(examples())} examples")


if __name__ == "__main__":
    main()
