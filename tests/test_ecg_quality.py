"""The quality report: every figure against a formula, every verdict against a defect that was put in."""

import numpy as np
import pandas as pd
import pytest
from ecg_cases import data_folder, record, twelve_leads

from ssmseq.ecg.folders import iterate_folder
from ssmseq.ecg.leads import STANDARD_LEADS
from ssmseq.ecg.quality import quality_report
from ssmseq.ecg.records import Record

COLUMNS = [
    "record",
    "lead",
    "duration",
    "nan_share",
    "flat_share",
    "clipped_share",
    "minimum",
    "maximum",
    "range",
    "baseline_wander",
    "powerline",
    "limb_deviation",
    "units",
    "verdict",
]


def of_lead(signal, rate=500.0, **options):
    """The row of one lead."""
    source = Record(signal=np.array([signal], float), sampling_rate=rate, lead_names=("V1",))
    return quality_report(source, **options).iloc[0]


def beats(n_times=5000, rate=500.0):
    return twelve_leads(n_times, rate=rate)[6]


def test_one_row_per_record_and_lead():
    frame = quality_report([record(500, record_id="a"), record(400, leads=("V1", "II"))])
    assert list(frame.columns) == COLUMNS
    assert frame["record"].tolist() == ["a"] * 12 + [1] * 2
    assert frame["lead"].tolist() == [*STANDARD_LEADS, "V1", "II"]
    assert frame["duration"].tolist() == [5.0] * 12 + [4.0] * 2
    assert set(frame["verdict"]) == {"good"}
    assert (frame["units"] == "").all()
    x = twelve_leads(500)
    np.testing.assert_allclose(frame["minimum"][:12], x.min(1))
    np.testing.assert_allclose(frame["maximum"][:12], x.max(1))
    np.testing.assert_allclose(frame["range"][:12], np.ptp(x, axis=1))
    assert frame["limb_deviation"].notna().tolist() == [True] * 6 + [False] * 8
    assert frame["limb_deviation"][:6].max() < 1e-12


def test_kinds_of_input():
    x = twelve_leads(500)
    expected = quality_report(Record(signal=x, sampling_rate=100, lead_names=STANDARD_LEADS))
    given = {"sampling_rate": 100, "lead_names": STANDARD_LEADS}
    for X in (x[None], [x], iter([x])):
        pd.testing.assert_frame_equal(quality_report(X, **given), expected)
    pd.testing.assert_frame_equal(
        quality_report(iter([x * 1000]), unit="uV", **given), expected, check_exact=False, rtol=1e-9, atol=1e-9
    )
    with pytest.raises(ValueError, match="give sampling_rate="):
        quality_report(x[None])
    with pytest.raises(ValueError, match="max_nan_share must be a number at least 0, got -1"):
        quality_report(x[None], **given, max_nan_share=-1)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.0102, 0.5, 1.0])
def test_missing_samples(share):
    x = beats()
    x[: round(share * 5000)] = np.nan
    row = of_lead(x)
    assert row["nan_share"] == pytest.approx(share)
    assert row["verdict"] == ("missing" if share > 0.01 else "good")
    assert of_lead(x, max_nan_share=1)["verdict"] == "good"


def test_flat_stretches():
    x = beats()
    x[1000:1499] = 0.3  # shorter than a second
    assert of_lead(x)["flat_share"] == 0
    x[2000:2500] = -0.2
    assert of_lead(x)["flat_share"] == pytest.approx(0.1)
    assert of_lead(x)["verdict"] == "good"
    x[3000:3500] = 0.1
    row = of_lead(x)
    assert row["flat_share"] == pytest.approx(0.2)
    assert row["verdict"] == "flat"
    assert of_lead(x, flat_seconds=0.998)["flat_share"] == pytest.approx(0.2 + 499 / 5000)
    dead = of_lead(np.zeros(5000))
    assert (dead["flat_share"], dead["clipped_share"], dead["verdict"]) == (1.0, 0.0, "flat")


def test_clipping():
    x = np.sin(2 * np.pi * np.arange(5000) / 500)
    assert of_lead(x)["clipped_share"] == 0
    row = of_lead(np.clip(x, -2, 0.9))
    assert row["clipped_share"] == pytest.approx(np.mean(x >= 0.9), abs=1e-3)
    assert row["verdict"] == "clipped"
    both = of_lead(np.clip(x, -0.9, 0.9))
    assert both["clipped_share"] == pytest.approx(np.mean(np.abs(x) >= 0.9), abs=1e-3)
    step = x.copy()
    step[1000:1015] = 0.37  # a plateau, but not at an extreme value
    assert of_lead(step)["clipped_share"] == 0
    step[:] = x
    step[100:114] = step.max() + 0.1  # one sample short of 30 ms
    assert of_lead(step)["clipped_share"] == 0
    step[100:115] = step.max()
    assert of_lead(step)["clipped_share"] == pytest.approx(15 / 5000)
    assert of_lead(np.repeat([0.0, 1, 0, -1], 2), rate=10, min_duration=0)["clipped_share"] == 0  # two samples


@pytest.mark.parametrize(("frequency", "amplitude"), [(0.2, 1.0), (0.3, 0.5), (0.1, 0.8)])
def test_wander_is_the_root_mean_square_below_the_limit(frequency, amplitude):
    t = np.arange(20_000) / 500
    row = of_lead(amplitude * np.sin(2 * np.pi * frequency * t) + 0.4 * np.sin(2 * np.pi * 5 * t) + 7)
    assert row["baseline_wander"] == pytest.approx(amplitude / np.sqrt(2), rel=1e-2)
    assert row["verdict"] == ("wander" if amplitude > 0.71 else "good")
    assert of_lead(0.4 * np.sin(2 * np.pi * 5 * t))["baseline_wander"] < 1e-3
    assert of_lead(np.sin(2 * np.pi * 0.7 * t))["baseline_wander"] < 0.01
    assert of_lead(np.sin(2 * np.pi * 0.7 * t), baseline_below=0.9)["baseline_wander"] == pytest.approx(0.707, rel=0.02)
    # A strong tone whose periods do not fill the recording must not leak far down.
    assert of_lead(3 * np.sin(2 * np.pi * 1.23 * t[:4700]))["baseline_wander"] < 0.1


@pytest.mark.parametrize(("rate", "seen"), [(500.0, (50, 60)), (257.0, (50, 60)), (120.0, (50,)), (100.0, ())])
def test_hum_is_the_root_mean_square_about_50_or_60_hz(rate, seen):
    t = np.arange(round(20 * rate)) / rate
    carrier = 0.5 * np.sin(2 * np.pi * 5 * t)
    assert np.isnan(of_lead(carrier, rate)["powerline"]) == (not seen)
    for line in seen:
        row = of_lead(carrier + 0.2 * np.sin(2 * np.pi * line * t), rate)
        assert row["powerline"] == pytest.approx(0.2 / np.sqrt(2), rel=1e-2)
        assert row["verdict"] == "hum"
        assert of_lead(carrier + 0.2 * np.sin(2 * np.pi * (line - 5) * t), rate)["powerline"] < 1e-3


def test_suspicious_units():
    x = beats()
    for factor, units in ((1, ""), (1000, "uV"), (1e-3, "V")):
        row = of_lead(x * factor, max_baseline_wander=1e9, max_powerline=1e9)
        assert row["units"] == units
        assert row["verdict"] == ("units" if units else "good")
    assert of_lead(x + 300)["units"] == ""  # an electrode offset
    assert of_lead(np.zeros(5000))["units"] == ""


def test_short_and_wrong_limbs():
    assert of_lead(beats()[:999])["verdict"] == "short"
    assert of_lead(beats()[:1000])["verdict"] == "good"
    assert "short" in of_lead([0.1])["verdict"]
    x = twelve_leads(1000)
    x[[1, 2]] = x[[2, 1]]
    frame = quality_report(Record(signal=x, sampling_rate=100, lead_names=STANDARD_LEADS)).set_index("lead")
    assert frame["verdict"].tolist() == ["limbs"] * 6 + ["good"] * 6


def test_several_reasons_are_all_named():
    x = beats() * 1000
    x[:600] = np.nan
    x[1000:2000] = 0
    assert of_lead(x[:3000], max_baseline_wander=1e9, max_powerline=1e9)["verdict"] == "missing, flat, units"


def test_real_recordings():
    frame = quality_report(iterate_folder(data_folder() / "ci_small" / "cinc2021"))
    assert len(frame) == 96
    assert frame["record"].nunique() == 8
    assert set(frame["verdict"]) == {"good"}
    assert frame["limb_deviation"].max() < 0.02
