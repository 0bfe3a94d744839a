"""Nothing in a run folder becomes an element of its page: the page is parsed, and has the elements and attributes of a harmless run."""

import json
from html.parser import HTMLParser

import pytest
from hostile.pages import CONFIG, ROW, SAMPLE, run_folder

from common.run.report import write_report

MARKUP = [
    "<script>document.title='x'</script>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"><svg onload='alert(1)'>",
    "' autofocus onfocus='alert(1)",
    "javascript:alert(1)",
    "<!--",
    "]]>",
    "{{alert(1)}}",
    "</title></style></textarea><iframe src=//elsewhere>",
]


class Elements(HTMLParser):
    """Which elements a page has, which attributes, and which addresses it would load or open."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.addresses = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.addresses |= {value for name, value in attributes if name in ("src", "href", "action", "data", "xlink:href")}


def with_everywhere(value, text):
    """The value with the text in each of its strings, and once more under names that have it."""
    if isinstance(value, dict):
        named = {f"{text}{name}": inner for name, inner in value.items()}
        return named | {name: with_everywhere(inner, text) for name, inner in value.items()}
    if isinstance(value, list):
        return [with_everywhere(inner, text) for inner in value]
    return value + text if isinstance(value, str) else value


@pytest.mark.parametrize("text", MARKUP)
def test_markup_stays_text(text, tmp_path):
    pages = []
    for name, change in (("plain", lambda value: value), ("evil", lambda value: with_everywhere(value, text))):
        folder = tmp_path / (name if "/" in text else f"{name}{text if name == 'evil' else ''}")
        folder.mkdir()
        rows = [change({**ROW, "step": step}) for step in range(1, 4)]
        samples = [change({**SAMPLE, "step": step}) for step in range(1, 4)]
        run_folder(folder, change(CONFIG), rows, samples)
        write_report([folder], tmp_path / f"{name}.html")
        pages.append((tmp_path / f"{name}.html").read_text())
    plain, evil = map(Elements, pages)
    assert evil.tags <= plain.tags | {"details", "summary", "option"} and evil.attributes <= plain.attributes
    assert evil.addresses == plain.addresses
    assert pages[0].count("<script") == pages[1].count("<script")
    data = pages[1].partition('type="application/json"')[2].partition(">")[2].partition("</script>")[0]
    assert text in json.dumps(json.loads(data), ensure_ascii=False).replace('\\"', '"')
