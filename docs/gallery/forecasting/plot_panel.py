"""
A panel: many series of unequal length, with gaps
=================================================

A long frame holds several series beneath each other. One model is fitted to all of them, and forecasts each, those that
it has never seen included. This page takes 60 of the 414 hourly series of the M4 competition, makes gaps in them, and
fits a small network for two epochs.
"""

# %%
# The frame
# ---------
#
# A frame with the columns ``unique_id``, ``ds`` and ``y`` is long without a word. M4 gives no dates, so ``ds`` counts
# the rows. Every seventh series of the set is taken, which mixes the sources that the competition drew from, and the 48
# rows of its test part are put behind the training rows.

import numpy as np
import pandas as pd

from ssmseq.datasets import fetch_m4_hourly

data = fetch_m4_hourly()
chosen = data.train["unique_id"].unique()[::7]
whole = pd.concat([data.train, data.test])
whole = whole[whole["unique_id"].isin(chosen)].sort_values(["unique_id", "ds"], ignore_index=True)
lengths = whole.groupby("unique_id").size()
print(f"{len(lengths)} series of {lengths.min()} to {lengths.max()} rows, {len(whole):,} in all")

# %%
# Then gaps, as sensors leave them: from each series two stretches of 5 to 40 rows are dropped, and single values are
# missing. Rows that the frequency asks for and NaN both count as missing.

rng = np.random.default_rng(0)
kept, HORIZON = [], 48
for _, series in whole.groupby("unique_id"):
    present = np.ones(len(series), bool)
    for start in rng.integers(0, len(series) - HORIZON - 40, 2):
        present[start : start + rng.integers(5, 41)] = False
    series = series[present].copy()
    alone = np.append(rng.random(len(series) - HORIZON) < 0.02, np.zeros(HORIZON, bool))
    kept.append(series.assign(y=series["y"].mask(alone)))
frame = pd.concat(kept, ignore_index=True)
train = frame[frame.groupby("unique_id").cumcount(ascending=False) >= HORIZON]
print(f"{len(whole) - len(frame):,} rows dropped, {frame['y'].isna().sum():,} values missing")

# %%
# Fit
# ---
#
# Each series is scaled by its own training rows. A network that is fitted on gaps is told where they were; missing
# targets count neither in the loss nor in a score. S-Mamba, KARMA and TSM2 mix variates, of which a long frame has one:
# what is left of TSM2 is its Mamba over patches of the look-back. ``LinearForecaster`` is one map for all series.

from ssmseq import LinearForecaster, NaiveForecaster, TSM2Forecaster

sizes = {"horizon": HORIZON, "lookback": 168}
models = {
    "TSM2": TSM2Forecaster(
        **sizes,
        d_model=32,
        n_layers=1,
        patch_len=24,
        stride=24,
        loss="mae",
        learning_rate=2e-3,
        batch_size=256,
        max_epochs=2,
        random_state=0,
    ),
    "RLinear": LinearForecaster(**sizes, loss="mae", learning_rate=5e-3, batch_size=256, max_epochs=2, random_state=0),
    "last day repeated": NaiveForecaster(**sizes, season_length=24),
    "last week repeated": NaiveForecaster(**sizes, season_length=168),
}
for model in models.values():
    model.fit(train)
models["TSM2"].history_.round(3)

# %%
# ``predict`` gives 48 rows for each series, in its own unit.

models["TSM2"].predict(level=[80]).head(3).round(1)

# %%
# Series of the panel, those with a gap near their end among them. The line of the history breaks where values are
# missing.

from ssmseq import ForecastDisplay

last = frame[frame.groupby("unique_id").cumcount(ascending=False) < HORIZON + 168]
most = last.groupby("unique_id").size().sort_values(kind="stable").index[:2]
shown = [*most, *[name for name in chosen[:40:20] if name not in most]]
display = ForecastDisplay.from_estimator(models["TSM2"], frame, level=[80]).plot(columns=shown)

# %%
# Backtest
# --------
#
# ``backtest`` forecasts the last windows of every series, here three days of cutoffs, and gives one frame with the
# truth beside the forecast. The competition's measure is the MASE: the mean absolute error of a series by that of
# repeating the last day within its training rows; below 1 is better than that. Of a set of such ratios the mean over
# series is taken.


def steps(x: pd.Series) -> float:
    """Return the mean absolute change over 24 rows, gaps left out."""
    return x.diff(24).abs().mean()


regular = train.set_index("ds").groupby("unique_id")["y"].apply(lambda y: y.reindex(range(y.index[0], y.index[-1] + 1)))
scale = regular.groupby(level=0).apply(steps)
found = {}
for name, model in models.items():
    block = model.backtest(frame, n_windows=3, step=24)
    error = (block["y"] - block[type(model).__name__]).abs().groupby(block["unique_id"]).mean()
    found[name] = error / scale
mase = pd.DataFrame(found)
mase.describe().loc[["mean", "50%", "min", "max"]].round(2)

# %%
# The mean hides that series differ. Each point is one series: below the line the network is better than repeating the
# last day.

import matplotlib.pyplot as plt

figure, axis = plt.subplots(figsize=(4.8, 4.6), layout="constrained")
limits = [0.8 * mase.min().min(), 1.25 * mase.max().max()]
axis.loglog(mase["last day repeated"], mase["TSM2"], "o", markersize=4, color="#D55E00", label="TSM2")
axis.loglog(mase["last day repeated"], mase["RLinear"], "^", markersize=4, color="#0072B2", label="RLinear")
axis.loglog(limits, limits, color="black", linewidth=0.8)
axis.set(xlabel="MASE of repeating the last day", ylabel="MASE of the model", xlim=limits, ylim=limits, aspect="equal")
axis.spines[["top", "right"]].set_visible(False)
legend = axis.legend(frameon=False)

# %%
# A series that the model has never seen
# --------------------------------------
#
# ``predict`` takes other series, also some that are shorter than the look-back; they are scaled by what there is of
# them.

new = data.train[data.train["unique_id"] == data.train["unique_id"].unique()[1]]
truth = data.test[data.test["unique_id"] == new["unique_id"].iloc[0]]["y"].to_numpy()
unseen = {
    f"{n} rows of history": np.abs(models["TSM2"].predict(new.tail(n))["y"].to_numpy() - truth).mean()
    for n in (len(new), 168, 72)
}
unseen = {name: value / steps(new["y"]) for name, value in unseen.items()}

# %%
# What was seen
# -------------

print("mean MASE:", ", ".join(f"{name} {value:.2f}" for name, value in mase.mean().items()))
for name in ("TSM2", "RLinear"):
    better = (mase[name] < mase["last day repeated"]).sum()
    print(f"{name} is better than repeating the last day on {better} of {len(mase)} series")
print("a series never seen, MASE:", ", ".join(f"{name} {value:.2f}" for name, value in unseen.items()))

# %%
# One model serves all series, gaps cost no preparation, and a new series needs no new fit. After two epochs on a
# seventh of the set, TSM2 is level with repeating the last day in the mean, which a few series decide, and better on
# most of the single ones. The spread between series is larger than that between models, so look at series and not at
# the mean alone.
#
# Do not use a panel where the series move each other: one model for all of them sees each alone. Make them variates
# instead (``frame.pivot(index="ds", columns="unique_id", values="y")``). The whole set, with longer training, is in
# :doc:`/benchmarks`; what a long frame may hold is in :doc:`/forecasting`.
