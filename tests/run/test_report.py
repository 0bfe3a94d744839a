import json
import random
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from helpers import ROOT, metrics, random_batch, run

from common.errors import UserError
from common.run import report
from common.run.completion_rows import SHOWN, add_tokens, completion_rows
from common.run.report import browser, page, pieces, write_report
from common.run.report_charts import MIX, POINTS, short, span, thin, ticks, wilson
from common.run.report_runs import group_runs, read_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
EVIL = '</script><script>document.title="broken"</script><img src=x onerror="document.title=1">&amp;\u2028'


def make_run(folder: Path, steps=20, every=5, samples=16, words=30, script="train_grpo", more=None, text="so <b>", flags=None, extra=None):
    """A run folder as the scripts leave it, with invented numbers. `extra`: further metrics, each a function of the step."""
    folder.mkdir(parents=True)
    rng = random.Random(0)
    flags = {"model": "tiny", "dataset": "arithmetic", "seed": 3, "output_dir": str(folder)} | (flags or {})
    command = [f"{script}.py", "--seed", "3"]
    (folder / "config.json").write_text(json.dumps({"script": script, "flags": flags, "command": command}))
    rows, completions = [{"step": 0, "eval/pass@1": 0.4, "eval/greedy": 0.8, "eval/problems": 400}], []
    for step in range(1, steps + 1):
        times = {"time/sample": 0.5, "time/verify": 0.01, "time/update": 0.4, "time/sync": 0.01, "step_time": 1.0, "memory/peak_gb": 0.7}
        mix = {"sampling/frac_solved": 0.2, "sampling/frac_mixed": 0.5, "sampling/frac_hopeless": 0.3}
        row = {"step": step, "reward": rng.random(), "num_tokens": 1000 * step, "grad_norm": 0.1, **times, **mix}
        row |= {name: make(step) for name, make in (extra or {}).items()}
        if step % every == 0:
            row |= {"eval/pass@1": 0.4 + step / 100, "eval/greedy": 0.9, "eval/problems": 400}
            for i in range(samples):
                pieces = [text, *(f" word{rng.randrange(1000)}" for _ in range(words - 2 if i < SHOWN else 3)), ""]
                offsets = [sum(map(len, pieces[:k])) for k in range(len(pieces))]
                credit = [round(rng.uniform(-1, 1), 3) for _ in pieces]
                own = {"offsets": offsets, "token_advantages": credit, **(more(pieces) if more else {})} if i < SHOWN else {}
                completions.append(
                    {"step": step, "problem": f"p/{i // 8}", "prompt": f"Question {i // 8}? {EVIL}", "completion": "".join(pieces)}
                    | {"answer": "7", "reward": float(i % 2), "advantage": 0.5, "finish_reason": "stop", "tokens": len(pieces), **own}
                )
        rows.append(row)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "completions.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in completions))
    return folder


def completions(folder):
    return [json.loads(line) for line in (folder / "completions.jsonl").read_text().split("\n") if line]


class Page(HTMLParser):
    """Elements with class and text, as the browser holds them."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open, self.title = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append([tag, dict(attrs), ""])
        if tag not in ("meta", "input", "br", "img", "link"):
            self.open.append(self.found[-1])

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, name):
        return [element for element in self.found if name in (element[1].get("class") or "").split()]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()


def opened(path: Path, where: str = "", width: int = 1400) -> tuple[Page, list[str]]:
    """The page after its script ran in a browser, and all requests: to our server, or to hosts that the browser cannot reach."""
    log = path.parent / "net.json"
    flags = [f"--window-size={width},900", "--hide-scrollbars"]
    flags += ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", f"--log-net-log={log}", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={path.parent / 'profile'}"]
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(path.parent))) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}"
        command = [CHROMIUM, *flags, "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--dump-dom"]
        dom = subprocess.run([*command, f"{home}/{path.name}{where}"], capture_output=True, text=True, timeout=120, check=True).stdout
        server.shutdown()
    elsewhere = {url for url in re.findall(r'"url":"(https?://[^"]+)"', log.read_text()) if not url.startswith(home)}
    own = re.compile(r"https?://[^/]*\.(google|gvt1|googleapis)\.com/")  # the browser's own business
    return Page(dom), server.asked + [url for url in elsewhere if not own.match(url)]


def test_wilson():
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Newcombe 1998's method 3 without correction
    assert wilson(1.0, 400) == pytest.approx((0.9905, 1.0), abs=1e-4) and wilson(0.0, 10)[0] == 0


def test_a_page_holds_all_it_needs(tmp_path):
    write_report([make_run(tmp_path / "a")], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//|@import|url\((?!#)", text)
    assert text.count("<svg") == 3 + 4 + 2  # learning over steps, tokens, seconds; reward, gradient norm, time, memory; two stacks
    assert "{{" not in text and "0.400 → 0.600" in text and "20,000 tokens, 20 s" in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))  # the figures do not take each other's
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= set(ids)


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    folders = [make_run(tmp_path / name / "seed-0", flags={"beta": i}) for i, name in enumerate(("ppo", "a$\\frac"))]
    write_report(folders, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "<b>ppo/seed-0</b>" in text and "<b>a$\\frac/seed-0</b>" in text
    assert legend(text) == ["ppo/seed-0", "a$\\frac/seed-0"]
    folders = [make_run(tmp_path / method / "0.001" / "seed-0", steps=5) for method in ("grpo", "nft")]
    write_report(folders, tmp_path / "report.html")
    assert "<b>grpo/0.001/seed-0</b>" in (tmp_path / "report.html").read_text()
    write_report(folders[:1] * 2, tmp_path / "report.html")  # one run twice: no folder further up tells them apart
    assert "<b>seed-0</b>" in (tmp_path / "report.html").read_text()


def legend(text: str, number: int = 0) -> list[str]:
    """The labels of a legend of the page, in order."""
    keys = re.findall(r'<p class="key[ \w]*">(.*?)</p>', text)
    return [re.sub("<.*?>", "", label) for label in re.findall(r"<span>(.*?)</span>(?=<span>|$)", keys[number])]


@in_browser
def test_nothing_is_wider_than_the_page(tmp_path):
    """Long names wrap, charts fit, and settings of the embedded task with a / in them are shown whole."""
    names = ("vineppo-k9-uniform", "dapo-uniform", "vineppo-k3-uniform-" + "very" * 30)
    folders = [make_run(tmp_path / name / "0.0012" / "seed-0", steps=5, flags={"beta": i}) for i, name in enumerate(names)]
    config = json.loads((folders[0] / "config.json").read_text())
    config["flags"]["dataset"] = "arithmetic:cells=0.01:12/0.6:4,words=2"
    (folders[0] / "config.json").write_text(json.dumps(config))
    out = tmp_path / "report.html"
    write_report(folders, out)
    text = out.read_text()
    assert "tiny on arithmetic:cells=0.01:12/0.6:4,words=2, seed 3" in text
    measure = "<script>document.title = document.documentElement.scrollWidth + '/' + innerWidth</script>"
    out.write_text(text.replace("<details", "<details open").replace("</body>", measure + "</body>"))
    for width in (1400, 500):
        shown, _ = opened(out, width=width)
        assert next(element[2] for element in shown.found if element[0] == "title") == f"{width}/{width}"


def test_runs_of_one_experiment_are_drawn_with_their_mean(tmp_path):
    """Three seeds of one configuration are a group. Its mean ends where the shortest of them ends."""
    value = {0: 1.0, 1: 2.0, 2: 6.0}
    runs = [read_run(make_run(tmp_path / f"lr1-s{seed}", steps=20 if seed else 10, flags={"seed": seed}, extra={"own": lambda _, v=v: v}))
            for seed, v in value.items()]
    runs.append(read_run(make_run(tmp_path / "other", flags={"beta": 0.5}, extra={"own": lambda _: 4.0})))
    groups = group_runs(runs)
    assert [group.name for group in groups] == ["lr1", "other"]
    assert {row["own"] for row in groups[0].steps} == {3.0} and len(groups[0].steps) == 10 and len(groups[1].steps) == 20
    assert groups[0].evaluations[-1]["step"] == 10
    text = page(runs)
    assert legend(text) == ["lr1", "other"]
    assert "seeds 0, 1, 2; mean of 3 runs: pass@1 0.400 → 0.500" in text
    own = text[text.index('aria-label="own"'):].partition("</svg>")[0]
    lines = re.findall(r'<path class="line (\w*)" stroke="(#\w+)"', own)
    assert lines == [("thin", groups[0].colour)] * 3 + [("", groups[0].colour), ("", groups[1].colour)]
    # groups that would have one name are told apart by their flags
    same = [read_run(make_run(tmp_path / f"run{i}", flags={"seed": i, "beta": i // 2})) for i in range(4)]
    assert [group.name for group in group_runs(same)] == ["run, train_grpo, beta 0", "run, train_grpo, beta 1"]


def test_every_metric_gets_a_chart(tmp_path):
    """Metrics that the page does not know are named as in metrics.jsonl. What is not a number is left out."""
    known = {name: lambda _: 0.1 for name in ("value/explained_variance", "value/frac_mixed", "entropy", "neg_logp")}
    forks = {f"fork/{i}": lambda step: step for i in range(8)}
    odd = {"note": lambda _: "text", "flag": lambda _: True, "list": lambda _: [1], "broken": lambda step: float("nan") if step % 2 else 1}
    text = page([read_run(make_run(tmp_path / "a", extra=known | forks | odd))])
    at_once, _, later = text.partition('<details class="more">')
    titles = [re.findall(r"<h3>(.*?)</h3>", part.partition("<h2>Time")[0]) for part in (at_once, later)]
    assert titles[0][:2] == ["pass@1 on held-out problems", "Reward"]
    assert {"Explained variance of the values", "Entropy, nats per token", *(f"fork/{i}" for i in range(6))} <= {*titles[0]}
    assert {"fork/6", "fork/7", "broken", "Negative log-prob, nats per token", "Peak memory, GB"} <= {*titles[1]}
    assert not {"note", "flag", "list", "step", "num_tokens", "time/sample"} & {*titles[0], *titles[1]}
    assert f"All other metrics ({len(titles[1])})" in text and "nan" not in re.sub('id="data">.*?</script>', "", text)


def test_the_flags_of_a_run_are_shown(tmp_path):
    text = page([read_run(make_run(tmp_path / "a", flags={"stop": ["<b>"], "reward": None, "leave_one_out": True}))])
    given, _, others = text.partition("On the command line</h4>")[2].partition("All others</h4>")
    assert re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", given) == [("seed", "3")]
    rest = {*re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", others)}
    assert {("stop", "&lt;b&gt;"), ("reward", "not set"), ("leave_one_out", "true")} <= rest


def test_where_equal_rewards_give_no_advantage_the_page_says_so(tmp_path):
    """The sentence comes from the completions: it holds for advantages that compare completions, and not with values."""
    sentence = "the model learns from the blue area alone"
    zeros = {"reward": 1.0}

    def none(pieces):
        return zeros | {"token_advantages": [0.0] * len(pieces)}

    for i, (more, said) in enumerate([
        (none, True),
        (lambda pieces: zeros, False),  # random advantages, as without a baseline
        (lambda pieces: none(pieces) | {"token_values": [1.0] * len(pieces)}, False),
        (lambda pieces: none(pieces) | {"step_starts": [0], "state_values": [1.0]}, False),
    ]):
        assert (sentence in page([read_run(make_run(tmp_path / str(i), more=more))])) == said


def test_a_stacked_chart_lists_its_areas_from_the_top(tmp_path):
    text = page([read_run(make_run(tmp_path / "a"))])
    assert legend(text, -1) == ["all wrong", "some better than others", "all right"]
    areas = re.findall(r'<path class="stack" fill="(#\w+)" d="M[\d.]+ ([\d.]+)', text[text.index('aria-label="Problems"'):])
    heights = {colour: float(top) for colour, top in areas}  # of the upper edges, from the top of the chart down
    labels = {label: heights[colour] for label, colour in MIX.values()}
    assert sorted(labels, key=labels.get) == legend(text, -1)
    assert legend(text, -2) == ["sync", "update", "verify", "sample"]  # and no phase that the run does not have


def test_ticks_are_round_and_steps_whole(tmp_path):
    assert ticks(0, 20) == [0, 5, 10, 15, 20] and ticks(0, 7, whole=True) == [0, 2, 4, 6] and ticks(0, 1, whole=True) == [0, 1]
    assert [short(x) for x in ticks(0.401, 0.62)] == ["0.45", "0.5", "0.55", "0.6"]
    assert [short(x) for x in (12_500, 2e-7, -0.5)] == ["12.5k", "2e\u22127", "\u22120.5"]
    assert span([2.0, 2.0]) == pytest.approx((-0.2, 4.2)) and span([]) == pytest.approx((-0.05, 1.05))
    for steps in (1, 2, 3, 7, 50):
        text = page([read_run(make_run(tmp_path / str(steps), steps=steps))])
        charts = re.findall(r'<div class="plot">.*?</div>', text)
        labels = [re.findall(r'class="tx"[^>]*>(.*?)<', chart) for chart in charts if '"xlabel">steps<' in chart]
        assert len(labels) == 7 and all(own and all(label.isdigit() for label in own) for own in labels)
    assert 'class="line dots"' in page([read_run(make_run(tmp_path / "b", steps=1))])  # one point is no line


def test_runs_that_go_on_or_went_wrong(tmp_path):
    """The page copes with a cut last line, with NaN, with rows of older versions, and with a run that has done no step yet."""
    folder = make_run(tmp_path / "a", more=lambda pieces: {"token_values": [float("nan")] * len(pieces)})
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(rows)[:-20])
    (folder / "completions.jsonl").write_text((folder / "completions.jsonl").read_text()[:-30])
    data = page([read_run(folder)]).partition('id="data">')[2].partition("</script>")[0]
    samples = json.loads(data, parse_constant=lambda name: pytest.fail(name))[0]["steps"][-1]["samples"]
    assert len(samples) == SHOWN - 1 and samples[0]["values"][0] is None
    older = [{k: v for k, v in json.loads(row).items() if not k.startswith(("time/", "sampling/", "eval/problems"))} for row in rows]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, older)))
    assert page([read_run(folder)]).count("<svg") == 3 + 4
    (folder / "metrics.jsonl").write_text(rows[0])
    assert page([read_run(folder)]).count("<svg") == 3
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="nothing to show"):
        page([read_run(folder)])


def test_model_text_cannot_end_its_element(tmp_path):
    text = page([read_run(make_run(tmp_path / "<i>run", text=EVIL))])
    data = text.partition('id="data">')[2].partition("</script>")[0]
    assert json.loads(data)[0]["steps"][0]["samples"][0]["pieces"][0] == EVIL and "<" not in data
    assert text.count("<script") == 2 and "onerror" not in text.replace(data, "") and "<i>" not in text


def test_long_runs_stay_small(tmp_path):
    """With every step evaluated and many long completions, the page has less than 2 MB and says what it leaves out."""
    folder = make_run(tmp_path / "a", steps=60, every=1, samples=180, words=400)
    assert len(completions(folder)) > 10_000
    write_report([folder], tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 2_000_000
    (kept,) = browser([read_run(folder)])
    assert kept["left_out"] == 60 - len(kept["steps"]) > 0 and kept["steps"][-1]["step"] == 60
    assert all(len(place["samples"]) == SHOWN for place in kept["steps"])
    many = {f"fork/{i}": lambda step: step % 7 / 7 for i in range(100)}
    runs = [read_run(make_run(tmp_path / f"s{seed}", steps=450, every=225, flags={"seed": seed}, extra=many)) for seed in range(6)]
    runs[0].samples = read_run(folder).samples
    assert len(page(runs).encode()) < 2_000_000


def test_many_steps_are_averaged_into_few_points():
    rows = [{"steps": i, "reward": float(i)} for i in range(5000)]
    x, y = thin(rows, "steps", "reward")
    assert len(x) <= POINTS and x == y and x[0] == 6.0  # the mean of 0 to 12


def test_tokens_of_mixed_problems_are_kept(random_models, tokenizer):
    batch = random_batch(tokenizer, ((5, 7), (3, 1), (9, 4)) * 10)  # each a group of its own
    rewards = torch.zeros(30)
    rows = completion_rows(1, batch, rewards, rewards, {})
    add_tokens(rows, batch, tokenizer, torch.arange(30 * 7).reshape(30, 7) / 7, None)
    assert [i for i, row in enumerate(rows) if "offsets" in row] == list(range(SHOWN))
    for i, row in enumerate(rows[:SHOWN]):
        assert "".join(pieces(row)) == row["completion"][row["offsets"][0] :] and len(pieces(row)) == row["tokens"]
        assert row["token_advantages"] == pytest.approx([i + k / 7 for k in range(row["tokens"])], rel=1e-2)
    mixed = [20, 21]
    batch.group_ids[21] = batch.group_ids[20]
    rewards[21] = 1.0
    rows = completion_rows(1, batch, rewards, rewards, {})
    add_tokens(rows, batch, tokenizer, rewards, torch.ones(30, 7))
    assert all("offsets" in rows[i] and rows[i]["token_values"] == [1.0] * rows[i]["tokens"] for i in mixed)
    assert sum("offsets" in row for row in rows) == SHOWN and rows[21]["token_advantages"] == [1.0] * rows[21]["tokens"]


def test_folders_that_are_no_runs(tmp_path, capsys, monkeypatch):
    with pytest.raises(UserError, match="not a run folder"):
        read_run(tmp_path)
    monkeypatch.setattr(sys, "argv", ["common.run", "report", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"error: .* is not a run folder"):
        report.main()


def test_a_report_that_fails_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "page", lambda runs: 1 / 0)
    folder = tmp_path / "run"
    assert run("train_grpo", folder, "--max_steps", "2", monkeypatch=monkeypatch) == 0
    assert "report.html was not written: ZeroDivisionError" in capsys.readouterr().out
    assert len(metrics(folder)) == 3 and not (folder / "report.html").exists()


@in_browser
def test_several_runs_from_the_command_line(tmp_path):
    folders = [make_run(tmp_path / f"run{i}", steps=10 + 5 * i, flags={"seed": i}) for i in range(5)]
    out = tmp_path / "all.html"
    command = [sys.executable, "-m", "common.run", "report", *map(str, folders), "--out", str(out)]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(out)
    shown, asked = opened(out, "#run=2&step=5")
    assert asked == ["/all.html"]
    assert [element[2] for element in shown.found if element[0] == "option"] == [f"run{i}" for i in range(5)]
    assert len(shown.all("sample")) == SHOWN and next(e[2] for e in shown.found if e[1].get("id") == "at") == "5"


@in_browser
def test_the_page_in_a_browser(tmp_path):
    """The page shows curves, tokens and values, fetches nothing, and shows the model's text as text."""
    values = {"train_ppo": lambda pieces: {"token_values": [0.25] * len(pieces)}}
    states = {"train_vineppo": lambda pieces: {"step_starts": [0, 3, 9], "state_values": [0.5, 0.75, 0.125]}}
    for script, more in (values | states).items():
        folder = make_run(tmp_path / script, script=script, more=more, text=EVIL)
        write_report([folder], folder / "report.html")
        shown, asked = opened(folder / "report.html", "#step=10&tint=values&x=tokens")
        assert asked == ["/report.html"]
        title = next(element[2] for element in shown.found if element[0] == "title")
        assert title == script and not any(element[0] == "img" for element in shown.found)
        rows = [row for row in completions(folder) if row["step"] == 10]
        texts = shown.all("text")
        assert len(texts) == len(rows) == SHOWN and len(shown.all("prompt")) == 2
        chips = ["V 0.500", "V 0.750", "V 0.125"] if script == "train_vineppo" else []
        for box, row in zip(texts, rows, strict=True):
            plain = box[2]
            for chip in [*chips, f"reward {int(row['reward'])}"] if chips else []:
                assert plain.count(chip) == 1
                plain = plain.replace(chip, "")
            assert plain == row["completion"] + "∎"
        assert len(shown.all("t")) == sum(row["tokens"] for row in rows)
        tinted = [element[1].get("style", "") for element in shown.all("t")]
        assert sum("var(--value)" in style for style in tinted) == (len(tinted) if script == "train_ppo" else 0)
        assert any("var(--bad)" in style for style in tinted) == (script == "train_vineppo")
        assert sum(element[0] == "svg" for element in shown.found) == 9
        by_id = {element[1]["id"]: element for element in shown.found if "id" in element[1]}
        bar = [by_id[name][1].get("class") or by_id[name][2] for name in ("low", "scale", "high")]
        most = max(abs(x) for row in rows for x in row["token_advantages"])
        assert bar == (["0", "scale value", "0.250"] if script == "train_ppo" else [f"{-most:.3g}", "scale", f"{most:.3g}"])
        assert ("hidden" in by_id["chips"][1]) == (script == "train_ppo") and ("hidden" in by_id["tints"][1]) == (script == "train_vineppo")


@in_browser
def test_a_state_has_its_value_where_its_step_begins(tmp_path):
    """A newline opens a step. The chip stands behind it, whether the newline is a token of its own or the start of a longer one."""
    texts = ["2+3=5", "\n", "\n", "5*2=10", "\n\n10", "-1=9", "\n", ""]
    folder = make_run(tmp_path / "a", steps=5)
    rows = completions(folder)
    for row in rows:
        if "offsets" in row:
            row |= {"completion": "".join(texts), "tokens": len(texts), "offsets": [sum(map(len, texts[:k])) for k in range(len(texts))]}
            row |= {"token_advantages": [0.5] * len(texts), "step_starts": [0, 1, 4, 6], "state_values": [0.5, 0.25, 0.75, 1.0]}
    (folder / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report([folder], folder / "report.html")
    shown, _ = opened(folder / "report.html")
    expected = "V 0.5002+3=5\n\nV 0.2505*2=10\n\nV 0.75010-1=9\nV 1∎"
    assert {box[2].removesuffix("reward 1").removesuffix("reward 0") for box in shown.all("text")} == {expected}
    # there is one evaluated step, so there is nothing to slide
    slider = next(element for element in shown.found if element[1].get("type") == "range")
    assert "hidden" in slider[1] and next(element[2] for element in shown.found if element[1].get("id") == "at") == "5"


@in_browser
def test_a_run_writes_its_page(tmp_path, capsys, monkeypatch):
    for script in ("train_ppo", "train_vineppo"):
        folder = tmp_path / script
        assert run(script, folder, "--max_steps", "2", monkeypatch=monkeypatch) == 0
        assert capsys.readouterr().out.rstrip().endswith(f"curves and completions: {folder / 'report.html'}")
        shown, _ = opened(folder / "report.html")
        rows = [row for row in completions(folder) if "offsets" in row]
        last = [row for row in rows if row["step"] == rows[-1]["step"]]
        assert len(shown.all("sample")) == len(last) > 0
        assert len(shown.all("t")) == sum(row["tokens"] for row in last)
        if script == "train_vineppo":
            assert len(shown.all("chip")) == sum(len(row["state_values"]) + 1 for row in last)
        else:
            assert all(len(row["token_values"]) == row["tokens"] for row in last)
