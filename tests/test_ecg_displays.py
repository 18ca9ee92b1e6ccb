"""Electrocardiograms on paper, measured in millimetres, saliency behind them, and curves of labels."""

import sys

import numpy as np
import pytest
from ecg_cases import record, twelve_leads
from ecg_waves import RATE, as_records, small, waves
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from ssmseq import Record
from ssmseq.ecg import ECGDisplay, LabelCurvesDisplay, SaliencyDisplay
from ssmseq.ecg.leads import STANDARD_LEADS

plt = pytest.importorskip("matplotlib.pyplot")
PAPER = [["I", "aVR", "V1", "V4"], ["II", "aVL", "V2", "V5"], ["III", "aVF", "V3", "V6"], ["II"]]


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def on_paper(display, points) -> np.ndarray:
    """Return points of the axes in mm from the lower left corner of the figure, as it is printed."""
    display.figure_.canvas.draw()
    return display.ax_.transData.transform(points) / display.figure_.dpi * 25.4


def lines(display, lead: str) -> list:
    return [line for line in display.ax_.lines if line.get_label() == lead]


def texts(display) -> list[str]:
    return [text.get_text() for text in display.ax_.texts]


def stripes(amplitude=1.0, **known) -> Record:
    """A record whose leads rise by `amplitude` mV for every second sample, on an offset; 10 s at 100 Hz."""
    signal = 0.3 + amplitude * (np.arange(1000) % 2 - 0.5) * np.ones((12, 1))
    return Record(signal=signal, sampling_rate=100.0, lead_names=STANDARD_LEADS, **known)


@pytest.mark.parametrize("dpi", [72, 140])
def test_the_scale_is_true_in_millimetres(dpi):
    display = ECGDisplay(stripes()).plot()
    display.figure_.set_dpi(dpi)
    (line,) = lines(display, "V6")
    points = on_paper(display, line.get_xydata())
    np.testing.assert_allclose(np.diff(points[:, 0]), 25 * 0.01, rtol=1e-9)
    np.testing.assert_allclose(np.abs(np.diff(points[:, 1])), 10, rtol=1e-9)
    rhythm = on_paper(display, lines(display, "II")[0].get_xydata())
    assert len(rhythm) == 1000
    np.testing.assert_allclose(np.ptp(rhythm[:, 0]), 25 * 9.99, rtol=1e-9)
    for pulse in lines(display, "1 mV"):
        x, y = on_paper(display, pulse.get_xydata()).T
        np.testing.assert_allclose([np.ptp(y), x[3] - x[2]], [10, 5], rtol=1e-9)
    assert len(lines(display, "1 mV")) == 4


def test_the_grid_is_of_one_and_five_millimetres():
    display = ECGDisplay(stripes()).plot()
    fine, bold = display.ax_.collections
    for collection, step in ((fine, 1), (bold, 5)):
        segments = np.array(collection.get_segments())
        segments = on_paper(display, segments.reshape(-1, 2)).reshape(segments.shape)
        upright = segments[np.isclose(segments[:, 0, 0], segments[:, 1, 0])][:, 0, 0]
        level = segments[np.isclose(segments[:, 0, 1], segments[:, 1, 1])][:, 0, 1]
        for places in (upright, level):
            np.testing.assert_allclose(np.diff(places), step, rtol=1e-6)
        assert len(upright) > 250 / step
    assert bold.get_linewidths()[0] > fine.get_linewidths()[0]
    baseline = lines(display, "1 mV")[0].get_ydata()[0]
    assert baseline % 5 == 0


def test_twelve_leads_stand_in_four_columns_one_after_the_other():
    signal = twelve_leads(1000)
    shuffled = np.random.default_rng(0).permutation(12)
    names = tuple(STANDARD_LEADS[i] for i in shuffled)
    display = ECGDisplay(Record(signal=signal[shuffled], sampling_rate=100.0, lead_names=names)).plot()
    for leads in PAPER[:3]:
        for column, lead in enumerate(leads):
            x, y = lines(display, lead)[-1].get_data()
            part = signal[STANDARD_LEADS.index(lead), 250 * column : 250 * (column + 1)]
            np.testing.assert_allclose(y - np.median(y), 10 * (part - np.median(part)), atol=1e-9)
            np.testing.assert_allclose(x, 10 + 62.5 * column + np.arange(250) / 4)
    heights = [[np.median(lines(display, lead)[-1].get_ydata()) for lead in leads] for leads in PAPER[:3]]
    assert np.ptp(heights, axis=1).max() < 1e-9
    assert np.median(lines(display, "II")[0].get_ydata()) < heights[2][0] < heights[1][0] < heights[0][0]
    shown = [text for text in texts(display) if text in STANDARD_LEADS]
    assert sorted(shown) == sorted([*STANDARD_LEADS, "II"])


def test_other_leads_are_stacked():
    display = ECGDisplay(record(300, leads=("V1", "I", "II"))).plot()
    heights = [np.median(lines(display, lead)[0].get_ydata()) for lead in ("V1", "I", "II")]
    assert heights == sorted(heights, reverse=True)
    assert all(len(lines(display, lead)[0].get_xdata()) == 300 for lead in ("V1", "I", "II"))
    display = ECGDisplay(record(300)).plot(layout="stack")
    assert len(lines(display, "1 mV")) == 12
    (name,) = [text for text in texts(display) if "s" in text and "mm" not in text]
    assert name == "0 to 3 s"


def test_a_later_part_of_a_long_recording():
    whole = record(6000, record_id="long")
    display = ECGDisplay(whole).plot(start=20.5)
    x, y = lines(display, "II")[0].get_data()
    expected = 10 * whole.signal[1, 2050:3050]
    np.testing.assert_allclose(y - np.median(y), expected - np.median(expected), atol=1e-9)
    np.testing.assert_allclose(x[0], 10)
    assert "long   20.5 to 30.5 s" in texts(display)
    last = ECGDisplay(whole).plot(start=59, seconds=4)
    assert "long   59 to 60 s" in texts(last)
    assert len(lines(last, "V4")[0].get_xdata()) == 0
    assert len(lines(last, "V1")[0].get_xdata()) == 0
    assert len(lines(last, "I")[0].get_xdata()) == 100


def test_missing_leads_are_named_and_derived_ones_told_apart():
    part = record(leads=("I", "II", "V1", "V2", "V3", "V4", "V5"))
    display = ECGDisplay(part).plot(layout="12-lead")
    for name in ("III (derived)", "aVR (derived)", "V6 (not recorded)", "V5"):
        assert name in texts(display)
    third = lines(display, "III")[0].get_ydata()
    expected = 10 * (part.signal[1] - part.signal[0])[:250]
    np.testing.assert_allclose(third - np.median(third), expected - np.median(expected), atol=1e-9)
    signal = twelve_leads(500)
    signal[7] = np.nan
    empty = ECGDisplay(Record(signal=signal, sampling_rate=100.0, lead_names=STANDARD_LEADS))
    assert "V2 (not recorded)" in texts(empty.plot())
    assert "V2 (not recorded)" in texts(empty.plot(layout="stack"))


def test_gaps_stay_gaps():
    signal = twelve_leads(1000)
    signal[1, 300:400] = np.nan
    signal[1, 350] = 0.1
    display = ECGDisplay(Record(signal=signal, sampling_rate=100.0, lead_names=STANDARD_LEADS)).plot()
    line = lines(display, "II")[0]
    np.testing.assert_array_equal(np.isnan(line.get_ydata()), np.isnan(signal[1]))
    points = [line for line in display.ax_.lines if line.get_marker() == "."]
    assert [p.get_xdata().tolist() for p in points] == [[10 + 350 / 4]]


def test_what_reaches_out_of_its_row_is_cut_and_named():
    quiet = ECGDisplay(stripes(7.8)).plot()
    assert "25 mm/s   10 mm/mV" in texts(quiet)
    signal = stripes().signal.copy()
    signal[8, 601] = 9.0
    display = ECGDisplay(Record(signal=signal, sampling_rate=100.0, lead_names=STANDARD_LEADS)).plot()
    assert "25 mm/s   10 mm/mV   cut at the edge of the row: V3" in texts(display)
    (line,) = lines(display, "V3")
    display.figure_.canvas.draw()
    height = line.get_clip_box().height / display.figure_.dpi * 25.4
    np.testing.assert_allclose(height, 40 + 10, rtol=1e-6)


def test_given_axes_keep_both_scales_in_proportion():
    figure, ax = plt.subplots(figsize=(5, 5))
    display = ECGDisplay(stripes()).plot(ax=ax)
    assert display.figure_ is figure
    (across, up) = on_paper(display, [[25, 10]])[0] - on_paper(display, [[0, 0]])[0]
    np.testing.assert_allclose(across / up, 2.5)
    size = ECGDisplay(stripes()).paper_size(seconds=4)
    assert tuple(ECGDisplay(stripes()).plot(seconds=4).figure_.get_size_inches()) == size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 10.0}, "start must be a number at least 0 and below 10"),
        ({"start": -1.0}, "start must be"),
        ({"layout": "6x2"}, "layout must be one of 'auto', '12-lead', 'stack'"),
        ({"seconds": 61}, "seconds must be"),
    ],
)
def test_errors_of_paper_say_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        ECGDisplay(stripes()).plot(**options)


def test_rows_of_the_frame():
    frame = ECGDisplay(record(50, leads=("I", "V1"))).frame()
    assert len(frame) == 100
    np.testing.assert_array_equal(frame[frame["lead"] == "V1"]["millivolts"], record(50, leads=("I", "V1")).signal[1])
    assert frame["seconds"].iloc[-1] == 0.49


def planted() -> SaliencyDisplay:
    """Saliency of one for V2 from 6 to 6.5 s, minus two for I from 1 to 1.2 s, nothing else; V5 is masked."""
    saliency, seconds = np.zeros((12, 500)), np.arange(500) / 50
    saliency[STANDARD_LEADS.index("V2"), 300:325] = 1
    saliency[0, 50:60] = -2
    usable = np.ones(12)
    usable[10], usable[11] = 0, 0.5
    return SaliencyDisplay(
        saliency=saliency, seconds=seconds, leads=STANDARD_LEADS, label="MI", method="occlusion", usable=usable
    )


def test_saliency_is_shaded_where_it_is():
    display = ECGDisplay(stripes(), saliency=planted()).plot()
    images = display.ax_.images
    assert len(images) == 13
    assert {image.get_clim() for image in images} == {(0, 2)}
    found = {}
    for image in images:
        left, right, bottom, top = image.get_extent()
        values = np.asarray(image.get_array())[0]
        for i in np.flatnonzero(values):
            x = left + (i + 0.5) * (right - left) / len(values)
            found.setdefault((round(float(bottom), 3), float(values[i])), []).append(x)
    places = {value: x for (_, value), x in found.items()}
    np.testing.assert_allclose(places[2.0], 10 + 25 * np.arange(1, 1.2, 0.02), atol=1e-6)
    np.testing.assert_allclose(places[1.0], 10 + 25 * np.arange(6, 6.5, 0.02), atol=1e-6)
    row = {key[1]: key[0] for key in found}
    v2, first = (np.median(lines(display, lead)[0].get_ydata()) for lead in ("V2", "I"))
    np.testing.assert_allclose([row[1.0], row[2.0]], [v2 - 10, first - 10])
    assert "V5 (masked)" in texts(display)
    assert "V6 (masked in part)" in texts(display)
    assert "shaded: absolute saliency for MI, occlusion" in texts(display)
    colors = images[0].get_cmap()(np.linspace(0, 1, 20))
    over_paper = (colors[:, :3] * colors[:, 3:] + 1 - colors[:, 3:]) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(over_paper) < 0).all()  # one way from light to dark, whatever the colour vision
    assert over_paper[-1] > 0.35  # so that black stands out


def test_the_heat_map_shows_sign_and_names():
    display = planted().plot()
    (image,) = display.ax_.images
    assert image.get_clim() == (-2, 2)
    np.testing.assert_array_equal(image.get_array(), planted().saliency)
    np.testing.assert_allclose(image.get_extent(), (-0.01, 9.99, 11.5, -0.5))
    assert [t.get_text() for t in display.ax_.get_yticklabels()][9:] == ["V4", "V5 (masked)", "V6 (masked in part)"]
    assert display.ax_.get_title(loc="left") == "what raises the logit of MI"


def test_a_classifier_is_drawn_with_its_saliency():
    X, y = waves(24, 100)
    est = small(max_epochs=1).fit(as_records(X), y)
    display = ECGDisplay.from_estimator(est, as_records(X)[0], label=1, start=0.5, stop=1.5)
    assert display.saliency.label == 1
    assert display.saliency.seconds[[0, -1]].tolist() == [0.5, 1.5 - 1 / RATE]
    assert len(display.plot().ax_.images) == 3


def predictions(n=200, k=4):
    rng = np.random.default_rng(0)
    prob = rng.random((n, k))
    truth = (rng.random((n, k)) < prob * [0.2, 0.4, 0.6, 0.8]).astype(float)
    truth[:30, 2] = np.nan
    return truth, prob


@pytest.mark.parametrize("kind", ["roc", "precision_recall", "reliability"])
def test_curves_are_those_of_scikit_learn(kind):
    truth, prob = predictions()
    display = LabelCurvesDisplay.from_predictions(truth, prob, labels=["a", "b", "c", "d"], kind=kind)
    frame = display.frame()
    known = ~np.isnan(truth[:, 2])
    y, p = truth[known, 2].astype(int), prob[known, 2]
    if kind == "roc":
        expected, area = roc_curve(y, p)[:2], roc_auc_score(y, p)
    elif kind == "precision_recall":
        expected, area = precision_recall_curve(y, p)[1::-1], average_precision_score(y, p)
    else:
        expected, area = calibration_curve(y, p, n_bins=10, strategy="quantile")[::-1], None
    rows = frame[frame["label"] == "c"]
    np.testing.assert_array_equal(rows["x"], expected[0])
    np.testing.assert_array_equal(rows["y"], expected[1])
    ax = display.plot().ax_
    np.testing.assert_array_equal(display.curves_["c"].line_.get_ydata(), expected[1])
    label = display.curves_["c"].line_.get_label()
    assert f"({y.sum()} of 170)" in label
    assert area is None or f"area {area:.3f}" in label
    assert len({line.get_color() for line in (c.line_ for c in display.curves_.values())}) == 4
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    if kind == "precision_recall":
        levels = sorted(line.get_ydata()[0] for line in ax.lines if len(set(line.get_ydata())) == 1)
        np.testing.assert_allclose(levels, sorted(np.nanmean(truth, 0)))
        assert f"chance {y.mean():.3f}" in label
    else:
        assert names[-1] == {"roc": "chance", "reliability": "perfectly calibrated"}[kind]
        assert ax.lines[-1].get_xydata().tolist() == [[0, 0], [1, 1]]


def test_labels_without_a_curve_are_named():
    truth, prob = predictions(k=4)
    truth[:, 0], truth[:, 1], truth[:, 3] = 0, 1, np.nan
    display = LabelCurvesDisplay.from_predictions(truth, prob, labels=["a", "b", "c", "d"])
    reasons = {"a": "no positive record", "b": "no negative record", "d": "not known of any record"}
    assert display.left_out == reasons
    told = display.plot().ax_.get_legend().get_title().get_text().replace("\n", " ")
    assert told == "Not drawn: a (no positive record), b (no negative record), d (not known of any record)"
    assert list(display.curves_) == ["c"]
    with pytest.raises(ValueError, match="'a' has no curve: no positive record"):
        display.plot(labels=["a"])
    with pytest.raises(ValueError, match="labels must be one of"):
        display.plot(labels=["e"])
    none = LabelCurvesDisplay.from_predictions(truth[:, :2], prob[:, :2])
    assert len(none.frame()) == 0
    assert none.plot().curves_ == {}


def test_of_many_labels_the_commonest_are_drawn():
    rng = np.random.default_rng(1)
    truth = (rng.random((400, 12)) < np.linspace(0.05, 0.6, 12)).astype(int)
    display = LabelCurvesDisplay.from_predictions(truth, rng.random((400, 12))).plot()
    assert list(display.curves_) == np.argsort(-truth.sum(0), kind="stable")[:7].tolist()
    told = display.ax_.get_legend().get_title().get_text()
    assert all(str(j) in told for j in np.argsort(-truth.sum(0), kind="stable")[7:])


def test_curves_of_an_estimator():
    X, y = waves(40, 50)
    est = small(max_epochs=1).fit(X, y)
    display = LabelCurvesDisplay.from_estimator(est, X, y, kind="reliability", n_bins=5, strategy="uniform")
    np.testing.assert_array_equal(display.y_prob, est.predict_proba(X))
    assert (display.labels, display.n_bins, display.strategy) == ([0, 1], 5, "uniform")
    classes = np.array(["a", "b", "c"])[y.sum(1)]
    exclusive = small(max_epochs=1).fit(X, classes)
    display = LabelCurvesDisplay.from_estimator(exclusive, X, classes)
    np.testing.assert_array_equal(display.y_true[:, 1], classes == "b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "lift"}, "kind must be one of 'roc'"),
        ({"n_bins": 1}, "n_bins must be"),
        ({"strategy": "even"}, "strategy must be one of"),
        ({"labels": ["a"]}, "1 labels are named, and y_true has 4 columns"),
    ],
)
def test_errors_of_curves_say_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        LabelCurvesDisplay.from_predictions(*predictions(), **options)


def test_a_missing_matplotlib_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for display in (ECGDisplay(stripes()), planted(), LabelCurvesDisplay.from_predictions(*predictions())):
        with pytest.raises(ImportError, match=r"ssmseq\[plot\]"):
            display.plot()
