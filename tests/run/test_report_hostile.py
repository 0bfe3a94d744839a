"""The page of a run folder that somebody else made."""

import json
import os
import random
import sys

import pytest
from hostile import makers
from hostile import pages as hostile
from hostile.folders import make_report_that_is_a_link

from common.errors import UserError
from common.run.report import main, write_report
from common.run.report_runs import read_run

REFUSED = {
    "config_empty": "not a run folder: .*config.json.*it has no flags",
    "config_deep": "not a run folder: .*config.json.*nested too deeply",
    "config_pipe": "not a run folder: .*config.json",
    "metrics_many_names": "metrics.jsonl has 100012 metrics",
    "metrics_device": "metrics.jsonl cannot be read: it is a link",
    "completions_line_without_end": "completions.jsonl has a line of more than 64 MiB",
}
MAKERS = makers(hostile)
PAGES = sorted(name for name in MAKERS if not name.startswith("manifest"))


@pytest.mark.parametrize("case", PAGES)
def test_a_page_of_a_hostile_folder_is_whole_or_refused_in_one_line(case, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["python -m common.run", "report", str(MAKERS[case](tmp_path))])
    if case in REFUSED:
        with pytest.raises(SystemExit, match=f"(?s)^error: [^\n]*{REFUSED[case]}[^\n]*$"):
            main()
    else:
        main()
        text = (tmp_path / "report.html").read_text()
        assert "<img" not in text and text.count("<script") == text.count("</script") == 2 and "{{" not in text
        assert read_run(tmp_path).samples[1][0]["completion"] == "so 2"


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json", "notes", "link", "pipe"])
def test_a_page_is_not_written_over_something_else(name, tmp_path, monkeypatch):
    """A name that was typed by mistake. As root, even a device would be replaced."""
    run = make_report_that_is_a_link(tmp_path)
    os.mkfifo(run / "pipe")
    (run / "link").symlink_to(tmp_path / "notes")
    out = tmp_path / "notes" if name == "notes" else run / name
    before = [(run / file).read_bytes() for file in ("metrics.jsonl", "config.json", "report.html")]
    monkeypatch.setattr(sys, "argv", ["python -m common.run", "report", str(run), "--out", str(out)])
    with pytest.raises(SystemExit, match=f"^error: --out .*{name} is there already and is not a page; name a new file$"):
        main()
    assert [(run / file).read_bytes() for file in ("metrics.jsonl", "config.json", "report.html")] == before
    monkeypatch.chdir(tmp_path)
    for folder in (".", "..", str(run), "/"):
        monkeypatch.setattr(sys, "argv", ["python -m common.run", "report", str(run), "--out", folder])
        with pytest.raises(SystemExit, match=r"^error: --out .* is a folder; name a file in it$"):
            main()
    monkeypatch.setattr(sys, "argv", ["python -m common.run", "report", str(run), "--out", str(tmp_path / "page")])
    main()
    main()  # over a page
    assert (tmp_path / "page").read_text().startswith("<!doctype html>")


def changed(value, draw):
    """The value with one part of it replaced or left out."""
    if isinstance(value, (dict, list)) and value and draw.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = draw.choice(keys)
        copy = value.copy()
        if draw.random() < 0.2:
            del copy[key]
        else:
            copy[key] = changed(value[key], draw)
        return copy
    numbers = [True, -1, 0, 0.5, 7, 1e300, -1e99, 10**50, 10**300, float("nan"), float("inf")]
    return draw.choice([*numbers, None, "text", [], {}, [1], [None], {"a": []}])


def test_a_folder_with_any_values_makes_a_page_or_one_line(tmp_path):
    """Several runs in a page, too: they are compared and averaged."""
    draw = random.Random(0)
    made = 0
    for i in range(150):
        folders = [tmp_path / f"{i}-{j}" for j in range(draw.choice([1, 1, 2]))]
        for folder in folders:
            folder.mkdir()
            config = changed(hostile.CONFIG, draw) if draw.random() < 0.3 else hostile.CONFIG
            rows = [changed({**hostile.ROW, "step": step}, draw) for step in range(2, 6)]
            hostile.run_folder(folder, config, rows, [changed(hostile.SAMPLE, draw) for _ in range(3)])
        try:
            write_report(folders, tmp_path / "page.html")
            made += 1
            data = (tmp_path / "page.html").read_text().partition('type="application/json"')[2].partition(">")[2].partition("</script>")[0]
            json.loads(data, parse_constant=lambda name: pytest.fail(name))
        except UserError as error:
            assert "\n" not in str(error)
    assert made > 100
