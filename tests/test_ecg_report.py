"""Reports of a classifier and of a recording: the figures on the page, and that it loads nothing."""

import re
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from ecg_waves import RATE, as_records, small, waves
from sklearn.metrics import roc_auc_score

from ssmseq import Record
from ssmseq.ecg import ECGDisplay, write_model_report, write_record_report
from ssmseq.ecg.metrics import bootstrap_interval, label_report, macro_auroc

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")


class Page(HTMLParser):
    """The tables, the other text and the addresses of a page."""

    def __init__(self, path):
        super().__init__()
        self.tables, self.addresses, self.words, self.open, self.cell = {}, [], [], [], None
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.addresses += [v for k, v in attrs.items() if k in ("src", "href", "action", "srcset")]
        if tag == "div" and "box" in attrs.get("class", "").split():
            self.rows = self.tables.setdefault(attrs["aria-label"], [])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.cell = True
        if self.cell and attrs.get("role") == "img":
            self.rows[-1][-1] += attrs["aria-label"]
        if tag == "small":
            self.rows[-1][-1] += " | "
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.cell = None

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if self.cell:
            self.rows[-1][-1] += data.strip()

    def table(self, begin: str) -> list[list[str]]:
        (found,) = [rows for caption, rows in self.tables.items() if caption.startswith(begin)]
        return found


@pytest.fixture(scope="module")
def data():
    X, y = waves(60, 50)
    return [
        Record(signal=x, sampling_rate=RATE, lead_names=("I", "II", "III"), record_id=f"r{i}", patient_id=f"p{i // 2}")
        for i, x in enumerate(X)
    ], pd.DataFrame(y, columns=["slow", "fast"])


@pytest.fixture(scope="module")
def fitted(data):
    """Fitted on records; no test may change it."""
    return small(thresholds=[0.4, 0.6], max_epochs=4).fit(*data)


@pytest.fixture(scope="module")
def page(fitted, data, tmp_path_factory) -> Page:
    path = tmp_path_factory.mktemp("report") / "sub" / "model.html"
    assert write_model_report(fitted, *data, path, n_resamples=25, n_worst=3) == path
    return Page(path)


def test_the_page_holds_everything_itself(page):
    assert page.addresses
    assert all(a.startswith("data:image/svg+xml;base64,") for a in page.addresses)
    outside = re.sub(r"data:image/svg\+xml;base64,[\w+/=]+", "", page.html)
    assert not re.search(r"https?:|//|url\(|@import|<script|<link", outside)
    assert "Not a medical device." in page.text
    assert page.open == []


def test_figures_of_labels_and_their_intervals(page, fitted, data):
    records, y = data
    prob = fitted.predict_proba(records)
    table = label_report(y, prob, [0.4, 0.6])
    heads, *rows = page.table("Each label")
    assert heads[:5] == ["label", "records", "positive", "AUROC", "AUPRC"]
    patients = np.arange(60) // 2
    for (label, expected), row in zip(table.iterrows(), rows, strict=True):
        cells = dict(zip(heads, row, strict=True))
        assert cells["label"] == label
        assert cells["positive"] == f"{y[label].sum()} | {y[label].mean():.1%}"
        for head, name in (("PPV", "ppv"), ("threshold", "threshold"), ("Brier", "brier"), ("ECE", "ece")):
            assert cells[head] == f"{expected[name]:.3f}"
        for head, name in (
            ("AUROC", "auroc"),
            ("AUPRC", "auprc"),
            ("F1", "f1"),
            ("sensitivity",) * 2,
            ("specificity",) * 2,
        ):

            def one(t, p, name=name, limit=expected["threshold"]):
                return label_report(t[:, None], p, limit)[name].iloc[0]

            column = list(y).index(label)
            point, low, high = bootstrap_interval(
                one, y[label].to_numpy(), prob[:, [column]], groups=patients, n_resamples=25
            )
            assert cells[head] == f"{point:.3f} | {low:.3f} to {high:.3f}"
    assert roc_auc_score(y["slow"], prob[:, 0]) == pytest.approx(table.loc["slow", "auroc"])


def test_figures_of_all_labels(page, fitted, data):
    records, y = data
    prob = fitted.predict_proba(records)
    heads, row = page.table("All labels")
    cells = dict(zip(heads, row, strict=True))
    found = bootstrap_interval(macro_auroc, y.to_numpy(), prob, groups=np.arange(60) // 2, n_resamples=25)
    assert cells["macro AUROC"] == f"{found.point:.3f} | {found.low:.3f} to {found.high:.3f}"
    assert cells["subset accuracy"].startswith(f"{fitted.score(records, y):.3f} |")
    assert "25 bootstrap draws of whole patients" in page.text
    assert "60 recordings of 30 patients, 2 labels" in page.text


def test_the_worst_errors_are_named(page, fitted, data):
    records, y = data
    prob, pred = fitted.predict_proba(records), fitted.predict(records)
    truth = y.to_numpy()
    loss = np.where(pred != truth, -np.log(np.where(truth == 1, prob, 1 - prob)), -1)
    rows = page.table("The 3 of")[1:]
    for (record, label, error, shown, told), place in zip(rows, np.argsort(-loss.ravel()), strict=False):
        i, j = divmod(int(place), 2)
        assert (record, label) == (f"r{i}", list(y)[j])
        assert error == ("missed" if truth[i, j] else "false alarm")
        assert (shown, told) == (f"{prob[i, j]:.4f}", f"{loss[i, j]:.2f}")
    assert f"The 3 of {(pred != truth).sum()} wrong decisions that have the largest loss, of 120" in page.text


def test_what_the_model_is(page, fitted):
    facts = dict(page.table("What it is"))
    assert f"{sum(w.numel() for w in fitted.network_.parameters()):,} weights" in facts["network"]
    assert facts["thresholds"] == "thresholds=[0.4, 0.6]: slow 0.400, fast 0.600"
    changed = dict(page.table("Parameters that differ"))
    assert changed["d_model"] == "16"
    assert "d_conv" not in changed
    contract = dict(page.table("In s, Hz and mV"))
    assert contract["sampling_rate"] == "50.0"
    assert contract["leads"] == "I, II, III"
    assert "4 epochs took" in page.text


@pytest.mark.filterwarnings("ignore:.*missing")
def test_quality_is_summed_up(fitted, tmp_path):
    X, y = waves(8, 150)
    X[5, 2], X[7, 0] = np.nan, 0.3
    X[7, 2] = np.nan
    page = Page(write_model_report(fitted, as_records(X), y, tmp_path / "q.html", n_resamples=2))
    assert page.table("What is wrong")[1:] == [["missing", "2", "2"], ["flat", "1", "1"]]
    assert page.table("The 2 recordings")[1:] == [
        ["recording 7", "I (flat), III (missing)"],
        ["recording 5", "III (missing)"],
    ]
    assert "21 of 24 leads are good; 2 of 8 recordings have one that is not." in page.text


def test_unknown_and_one_sided_labels(fitted, data, tmp_path):
    records, y = data
    y = y.astype(float)
    y["slow"] = 0.0
    y.iloc[:20, 1] = np.nan
    page = Page(write_model_report(fitted, records, y, tmp_path / "a.html", n_resamples=5))
    rows = {row[0]: row for row in page.table("Each label")[1:]}
    assert rows["fast"][1] == "40"
    assert rows["slow"][1:5] == ["60", "0 | 0.0%", "–", "–"]  # noqa: RUF001
    y["slow"] = np.nan
    page = Page(write_model_report(fitted, records, y, tmp_path / "b.html", n_resamples=5))
    assert "No interval for slow: it is known of 0 recordings" in page.text


def test_no_intervals_are_said_so(fitted, data, tmp_path):
    records, y = data
    page = Page(write_model_report(fitted, records, y, tmp_path / "a.html", groups=np.zeros(60), n_resamples=5))
    assert "No intervals for the figures of all labels" in page.text
    assert "No interval for fast" in page.text
    assert " to 0." not in "".join(cell for row in page.table("Each label") for cell in row)


def test_classes_that_exclude_each_other(tmp_path):
    X, y = waves(40, 50)
    classes = np.array(["a", "b", "c"])[y.sum(1)]
    est = small(max_epochs=2).fit(X, classes)
    page = Page(write_model_report(est, X, classes, tmp_path / "m.html", n_resamples=5))
    found = est.predict(X)
    rows = {row[0]: dict(zip(page.table("Each label")[0], row, strict=True)) for row in page.table("Each label")[1:]}
    for name in "abc":
        expected = (found == name)[classes == name].mean()
        assert rows[name]["sensitivity"].startswith(f"{expected:.3f}")
        assert rows[name]["threshold"] == "–"  # noqa: RUF001
    assert "without lead names" in page.text
    assert "recordings, since no patients are known" in page.text
    page = Page(write_record_report(est, X[0], tmp_path / "r.html"))
    decided = {row[0]: row[-1] for row in page.table("Probability of each class")[1:]}
    assert decided == {name: "predicted" if name == found[0] else "not predicted" for name in "abc"}


def test_a_recording(fitted, data, tmp_path):
    record = Record(
        signal=data[0][0].signal,
        sampling_rate=RATE,
        lead_names=("I", "II", "III"),
        record_id="<b>x</b>",
        age=61.0,
        sex="F",
        labels=("AF",),
    )
    page = Page(write_record_report(fitted, record, tmp_path / "r.html", title="One recording"))
    assert "<b>x</b>" not in page.html
    assert "<title>One recording</title>" in page.html
    patient = dict(page.table("As the recording states it"))
    assert (patient["recording"], patient["age"], patient["sex"]) == ("<b>x</b>", "61 years", "F")
    assert (patient["patient"], patient["labels in the file"]) == ("not stated", "AF")
    prob = dict(zip(fitted.classes_, fitted.predict_proba([record])[0], strict=True))
    limits = dict(zip(fitted.classes_, fitted.thresholds_, strict=True))
    rows = page.table("Probability of each label")[1:]
    assert [row[0] for row in rows] == sorted(prob, key=lambda name: -prob[name])
    for label, bar, shown, limit, decision in rows:
        assert bar == f"probability {prob[label]:.3f}, threshold {limits[label]:.3f}"
        assert (shown, limit) == (f"{prob[label]:.3f}", f"{limits[label]:.3f}")
        assert decision == ("predicted" if prob[label] >= limits[label] else "not predicted")
        assert f"width:{100 * prob[label]:.2f}%" in page.html
        assert f"left:{100 * limits[label]:.2f}%" in page.html
    assert [row[0] for row in page.table("Each lead")[1:]] == ["I", "II", "III"]
    assert len(page.addresses) == 2
    assert all(a.startswith("data:") for a in page.addresses)
    assert "Not a medical device." in page.text
    assert page.html.count("width:50.0mm") == 2  # margins of 10, 10 before the signal, 25 of it, 5 after


def test_a_part_of_a_long_recording(fitted, tmp_path, monkeypatch):
    drawn = []
    plot = ECGDisplay.plot

    def spy(display, **options):
        drawn.append((display.saliency.seconds[[0, -1]].tolist(), options["start"]))
        return plot(display, **options)

    monkeypatch.setattr(ECGDisplay, "plot", spy)
    record = as_records(waves(1, 1000)[0])[0]
    page = Page(write_record_report(fitted, record, tmp_path / "r.html", n_labels=1, start=4.0))
    assert drawn == [([4.0, 14 - 1 / RATE], 4.0)]
    assert "Drawn: 4 to 14 s of 20 s." in page.text
    assert len(page.addresses) == 1


def test_pages_repeat(fitted, data, tmp_path):
    pages = [write_record_report(fitted, data[0][0], tmp_path / f"{i}.html").read_bytes() for i in range(2)]
    assert pages[0] == pages[1]


def test_missing_packages_and_bad_parameters_are_named(fitted, data, tmp_path, monkeypatch):
    for options, message in (({"n_labels": 0}, "n_labels must be"), ({"start": 99.0}, "start must be")):
        with pytest.raises(ValueError, match=message):
            write_record_report(fitted, data[0][0], tmp_path / "r.html", **options)
    with pytest.raises(ValueError, match="n_resamples must be"):
        write_model_report(fitted, *data, tmp_path / "m.html", n_resamples=0)
    with pytest.raises(ValueError, match="inconsistent numbers"):
        write_model_report(fitted, data[0], data[1][:5], tmp_path / "m.html")
    for name in ("jinja2", "matplotlib.figure"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(ImportError, match=r"ssmseq\[ecg\]"):
                write_model_report(fitted, *data, tmp_path / "m.html")
    assert not (tmp_path / "m.html").exists()
