"""
Intervals and quantiles, and whether they hold
==============================================

``predict(level=[80, 95])`` puts an interval around each forecast, and a network trained with ``quantiles`` gives bands
of its own. A band is worth what its coverage is, so both are measured here on the test part of ETTh1: on all of it, but
for a horizon of one day and with a network of two epochs.
"""

# %%
# Intervals from past errors
# --------------------------
#
# The intervals come from the errors on the validation windows, in units of the spread of each window's look-back.
# Nothing is trained for them, so any forecaster has them; ridge serves here, since it fits in a second.

import pandas as pd

from ssmseq import RidgeForecaster
from ssmseq.datasets import fetch_ett

data = fetch_ett(variant="h1")
train, validation, test = (data.frame[slice(*data.splits[part])] for part in ("train", "validation", "test"))
scored = pd.concat([validation[-96:], test])
ridge = RidgeForecaster(horizon=24, lookback=96).fit(train, validation=validation)
ridge.predict(test, level=[80, 95]).filter(like="OT").head(3).round(2)

# %%
# The history and the forecast are in degrees Celsius for ``OT``, and in the units of the file for the loads.

from ssmseq import ForecastDisplay

display = ForecastDisplay.from_estimator(ridge, test, level=[80, 95]).plot(columns=["HUFL", "MULL", "OT"])

# %%
# Coverage
# --------
#
# ``evaluate(level=...)`` counts how many of the values lie inside, over all windows, rows and variates, and gives the
# mean width, here of standardised values.

found = ridge.evaluate(scored, level=[50, 80, 95])
fixed = pd.DataFrame(
    {p: {"covered, %": 100 * found[f"coverage_{p}"], "mean width": found[f"width_{p}"]} for p in (50, 80, 95)}
).T.rename_axis("level, %")
fixed.round(2)

# %%
# One figure for all hides that the series drifts. ``backtest`` gives each forecast by its cutoff, so that the coverage
# can be counted by month. With ``recalibrate`` the intervals come from the errors at the rows known before each cutoff,
# as a user would have them who keeps observing, and get wider where too few values have lain inside. The validation part
# is put before the test part, to have such rows from the first day on.

import matplotlib.pyplot as plt

cutoffs = {"step": 24, "n_windows": len(test) // 24, "level": [80]}
observed = pd.concat([validation, test])
blocks = {
    "fixed": ridge.backtest(observed, **cutoffs),
    "recalibrated every day": ridge.backtest(observed, recalibrate=24, **cutoffs),
}


def covered(block: pd.DataFrame) -> pd.Series:
    """Return by month of the cutoff which percentage of the values lay within the interval of 80 %."""
    inside = block["y"].between(block["RidgeForecaster-lo-80"], block["RidgeForecaster-hi-80"])
    return 100 * inside.groupby(block["cutoff"].dt.strftime("%Y-%m")).mean()


by_month = pd.DataFrame({name: covered(block) for name, block in blocks.items()})
_, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
by_month.plot.bar(color=["#6b7280", "#0072B2"], rot=0, ax=axis)
axis.axhline(80, color="black", linewidth=0.8, linestyle="--")
axis.set(xlabel="month of the cutoff", ylabel="values inside the 80 % interval (%)", ylim=(50, 100))
axis.spines[["top", "right"]].set_visible(False)
legend = axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)

# %%
# Quantiles that are trained for
# ------------------------------
#
# With ``quantiles`` a network is trained on the quantile loss: it can widen its band where the look-back tells that the
# next day is uncertain, and it need not be symmetric. The quantiles never cross.

from ssmseq import SMambaForecaster

network = SMambaForecaster(
    horizon=24,
    lookback=96,
    d_model=64,
    d_ff=64,
    learning_rate=1e-3,
    batch_size=64,
    max_epochs=2,
    quantiles=[0.1, 0.5, 0.9],
    random_state=0,
)
_ = network.fit(train, validation=validation)
network.predict(test, quantiles=True).filter(like="OT").head(3).round(2)

# %%
# How often the truth lies below each quantile: for a calibrated model as often as the quantile says. Every tenth window
# of the test part is forecast for that.

levels = [0.1, 0.5, 0.9]
below = []
for start in range(0, len(test) - 23, 10):
    window = scored.iloc[start : start + 96]
    truth = scored.iloc[start + 96 : start + 120].to_numpy()
    forecast = network.predict(window, quantiles=True)
    below.append([(truth < forecast[[f"{name}-q{q:g}" for name in test]].to_numpy()).mean(0) for q in levels])
shares = pd.DataFrame(sum(map(pd.DataFrame, below)) / len(below))
shares.index, shares.columns = pd.Index(levels, name="quantile"), test.columns

figure, axis = plt.subplots(figsize=(5, 4), layout="constrained")
for name in shares:
    axis.plot(levels, shares[name], marker="o", markersize=4, linewidth=1.2, label=name)
axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--", label="calibrated")
axis.set(xlabel="quantile", ylabel="share of values below it", xlim=(0, 1), ylim=(0, 1), xticks=levels)
axis.spines[["top", "right"]].set_visible(False)
legend = axis.legend(loc="upper left", frameon=False, fontsize="small")

# %%
# What was seen
# -------------

inside = shares.mean(axis=1)[0.9] - shares.mean(axis=1)[0.1]
for level, share in fixed["covered, %"].items():
    print(f"ridge: {share:.1f} % of the values inside the {level} % interval")
for name, months in by_month.items():
    print(f"by month, {name}: {months.min():.1f} to {months.max():.1f} %")
print(f"S-Mamba: {100 * inside:.1f} % between the quantiles 0.1 and 0.9")

# %%
# The mean coverage of the fixed intervals is near what they say, and that of single months is not. Recalibration
# changes little here: its intervals come from up to 1,400 of the latest windows, eight weeks, and follow a change of
# the season as late. Over longer horizons it does more (:doc:`/forecasting`). The band between the trained quantiles
# holds less than it says, for it was fitted to other months, and nothing in it notices.
#
# Do not use an interval of either kind as a guarantee: the mathematics behind both supposes windows that could as well
# have come in another order, which months of weather are not. Measure the coverage on your own latest rows.
# :doc:`/forecasting` has coverage for longer horizons, and :doc:`/benchmarks` how it compares between models.
