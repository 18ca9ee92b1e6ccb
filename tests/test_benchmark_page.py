"""The page of a suite's report: what a browser needs, and what its pictures hold."""

import html
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from benchmark_cases import FACTORS, LEVELS, change, make, pictures_of, text_of

pytest.importorskip("scikit_posthocs")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from ssmseq.benchmark.figures import Styles
from ssmseq.benchmark.report import build_report


class Page(HTMLParser):
    """What a browser would fetch, show in pictures and jump to."""

    def __init__(self, text: str):
        super().__init__()
        self.addresses, self.links, self.ids, self.tags, self.metas = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.addresses += [found["src"]] if "src" in found else []
        self.links += [found["href"]] if "href" in found else []
        self.ids += [found["id"]] if "id" in found else []
        self.metas += [found] if tag == "meta" else []


@pytest.fixture(scope="module")
def full_report():
    """Every section: examples, steps, failures, choices and published numbers."""
    suite, rows = make(models=("ridge", "S-Mamba", "naive", *(f"model {i}" for i in range(6))))
    suite.title, suite.absent = "<script>alert(1)</script> & more", {"solar": "not run: <b>not here</b>"}
    for row in rows:
        if row["horizon"] == 96:
            values = [1.0, 2.0, 3.0]
            forecast = [v * FACTORS.get(row["model"], 1.1) for v in values]
            row["example"] = {"variate": "OT", "history": [0.5] * 9, "truth": values, "forecast": forecast}
    change(rows, {"selected": {"alpha": 1.0}}, model="ridge")
    change(rows, {"n_windows": 88}, key="naive-ETTh1-96-0")
    change(rows, {"status": "failed", "reason": "<img src=x>"}, key="model 5-ETTh2-96-0")
    return build_report(suite, rows)


def test_the_page_needs_nothing_beside_it(tmp_path, full_report):
    written, text = (path.read_text() for path in full_report.save(tmp_path / "new" / "folder"))
    assert written == full_report.html()  # the same rows give the same page, to the byte
    page = Page(written)
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)
    assert len(page.addresses) == sum(len(s.pictures) for s in full_report.sections) == 1 + 2 + 3 + 3
    anchors = [s.anchor for s in full_report.sections]
    assert [i for i in page.ids if i in anchors] == anchors
    assert set(page.links) == {f"#{a}" for a in anchors}
    assert not {"script", "link", "b"} & set(page.tags)
    assert "&lt;script&gt;alert(1)" in written
    assert '<li class="grave">MISMATCH' in written
    assert "&lt;img src=x&gt;" in written
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.metas
    assert not re.search(r"url\(|@import", written)
    assert text == full_report.markdown()
    assert page.tags.count("sup") >= 9 * 3  # ranks are also figures, for those who see no colours


def test_markdown_of_chosen_sections(full_report):
    text = full_report.markdown(only=("summary", "errors"))
    assert re.findall("^## (.*)", text, flags=re.MULTILINE) == ["Summary", "Errors"]
    with pytest.raises(ValueError, match="no section nothing; it has summary, warnings"):
        full_report.markdown(only=["nothing"])


def test_pictures_of_steps_and_examples_hold_the_numbers(full_report):
    steps = pictures_of(full_report, "steps")
    assert [p.text.split(",")[0] for p in steps] == list(LEVELS)
    axis = steps[0].draw().axes[0]
    lines = {line.get_label(): line for line in axis.lines}
    assert set(lines) == {"S-Mamba", "ridge", "model 0", "model 1", "model 2", "model 3"}  # the best, and the reference
    assert "Not drawn: naive; model 4; model 5." in steps[0].text
    np.testing.assert_array_equal(lines["ridge"].get_xdata(), [1, 192])
    np.testing.assert_array_equal(lines["ridge"].get_ydata(), [0.1, 0.7])
    axis = pictures_of(full_report, "examples")[0].draw().axes[0]
    lines = {line.get_label(): line for line in axis.lines}
    np.testing.assert_allclose(lines["S-Mamba"].get_ydata(), [0.9, 1.8, 2.7])
    np.testing.assert_array_equal(lines["S-Mamba"].get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(lines["history"].get_xdata(), [-5, -4, -3, -2, -1, 0])  # twice the horizon
    np.testing.assert_array_equal(lines["what happened"].get_ydata(), [1, 2, 3])


def test_errors_by_step_are_means_over_seeds_and_examples_show_one_window():
    suite, rows = make(seeds={"S-Mamba": 2})
    change(rows, {"mse_by_step": [0.3, 0.9]}, model="S-Mamba", seed=1)
    for row in rows:
        truth = [0.0, 1.0, 3.0] if row["model"] == "ridge" else [1e-6, 1.0, 3.0001]  # rounding
        row["example"] = {"variate": "OT", "history": [0.0], "truth": truth, "forecast": [2.0] * 3}
    change(
        rows,
        {"example": {"variate": "OT", "history": [0.0], "truth": [0.0, 1, 3.1], "forecast": [5] * 3}},
        model="naive",
    )
    report = build_report(suite, rows)
    lines = {line.get_label(): line for line in pictures_of(report, "steps")[0].draw().axes[0].lines}
    np.testing.assert_allclose(lines["S-Mamba"].get_ydata(), [0.2, 0.8])
    example = pictures_of(report, "examples")[0]
    drawn = {line.get_label() for line in example.draw().axes[0].lines}
    assert {"ridge", "S-Mamba"} <= drawn
    assert "naive" not in drawn
    assert "of another window: naive." in example.text


def test_pictures_of_cost_are_relative_to_ridge():
    suite, rows = make()
    change(rows, {"fit_seconds": 0.0, "peak_memory_mb": 100}, model="naive")
    change(rows, {"fit_seconds": 30.0}, model="S-Mamba", horizon=192)
    time_picture, memory_picture = pictures_of(build_report(suite, rows), "cost")
    points = {line.get_label(): line for line in time_picture.draw().axes[0].lines}
    assert points["S-Mamba"].get_xdata()[0] == pytest.approx(21)  # the mean of 12 and 30
    assert points["S-Mamba"].get_ydata()[0] == pytest.approx(0.9)
    assert points["naive"].get_ydata()[0] == pytest.approx(2.0)
    assert points["naive"].get_xdata()[0] == 0.01  # a logarithmic axis has no 0
    points = {line.get_label(): line for line in memory_picture.draw().axes[0].lines}
    assert points["naive"].get_xdata()[0] == 100
    suite, rows = make()
    picture = pictures_of(build_report(suite, rows, reference="nobody"), "cost")[0]
    points = {line.get_label(): line for line in picture.draw().axes[0].lines}
    assert points["ridge"].get_ydata()[0] == pytest.approx(1 / 0.9)  # relative to the best of each data set


def test_models_have_the_same_look_in_every_picture_and_no_two_share_one():
    styles = Styles([f"model {i}" for i in range(20)], "model 3")
    assert styles.of["model 3"]["color"] == "#000000"
    for looks in (styles.line, styles.point):
        assert len({tuple(looks(f"model {i}").items()) for i in range(20)}) == 20


def test_too_few_data_sets_for_a_diagram_and_none_at_all():
    suite, rows = make(datasets=("ETTh1", "ETTh2"))
    report = build_report(suite, rows)
    assert "No test and no critical-difference diagram: models are compared on 2 data sets" in text_of(report, "ranks")
    assert not pictures_of(report, "ranks")
    empty = build_report(suite, [])
    assert "Of 12 runs, 0 succeeded, 0 failed, 12 are not there yet." in empty.markdown()
    assert "nothing to compare yet" in empty.html()
    broken = [{**e, "status": "failed", "reason": None} for e in suite.expected]
    assert "no reason was recorded" in build_report(suite, broken).markdown()


def test_where_wilcoxons_test_can_find_nothing_nemenyis_is_beside_it():
    datasets = [f"set {i}" for i in range(8)]
    suite, rows = make(datasets=datasets)
    assert "Wilcoxon" in pictures_of(build_report(suite, rows), "ranks")[0].text
    suite, rows = make(datasets=datasets[:4])
    report = build_report(suite, rows)
    assert "Nemenyi" in pictures_of(report, "ranks")[0].text
    assert "cannot give a p-value below 0.38" in text_of(report, "ranks")
    assert "Nemenyi's test: pairs that differ at 5 %: S-Mamba before naive." in text_of(report, "ranks")


@pytest.mark.parametrize("name", ["matplotlib.figure", "jinja2"])
def test_without_a_package_the_extra_is_named(monkeypatch, full_report, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'pip install "ssmseq\[benchmark\]"'):
        full_report.html()


def test_importing_loads_neither_torch_nor_matplotlib():
    code = "import sys, ssmseq.benchmark.report; print(sorted({'torch', 'matplotlib', 'jinja2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_thousand_rows_are_reported_in_20_seconds():
    models = ("ridge", "S-Mamba", *(f"model {i}" for i in range(10)))
    datasets = tuple(f"set {i}" for i in range(7))
    suite, rows = make(dict.fromkeys(models, 3), models, (96, 192, 336, 720), datasets)
    for row in rows:
        row["steps"], row["mse_by_step"] = list(range(48)), [row["mse"]] * 48
        row["example"] = {"variate": "OT", "history": [0.0] * 96, "truth": [1.0] * 96, "forecast": [2.0] * 96}
    assert len(rows) == 1008
    began = time.perf_counter()
    build_report(suite, rows).html()
    assert time.perf_counter() - began < 20


@pytest.mark.slow
@pytest.mark.parametrize("width", [375, 1280])
def test_nothing_sticks_out_of_the_page(tmp_path, full_report, width):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium")
    # in a frame, since a window of the browser has a least width of its own
    style, inside = f"width: {width}px; height: 800px; border: 0", html.escape(full_report.html())
    frame = f"<iframe style='{style}' srcdoc='{inside}'></iframe>"
    script = (
        "<script>onload = () => { const page = document.querySelector('iframe').contentWindow; "
        "document.title = page.innerWidth + ' ' + page.document.documentElement.scrollWidth; }</script>"
    )
    page = tmp_path / "page.html"
    page.write_text(f"<!DOCTYPE html><title></title>{frame}{script}")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--dump-dom"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"]
    options += [f"--user-data-dir={tmp_path / 'browser'}", "--window-size=1400,1000"]
    done = subprocess.run([browser, *options, page.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    inner, needed = map(int, re.search(r"<title>(\d+) (\d+)</title>", done.stdout).groups())
    assert inner == width
    assert needed == width
