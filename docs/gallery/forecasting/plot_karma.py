"""
KARMA: trend, season and bands
==============================

KARMA takes the trend off the look-back and splits learned tokens by a wavelet into two bands. ``DecompositionDisplay``
shows these parts, and what each of them adds to a forecast. This page does so on ETTh1, with a network an eighth as
wide as the published one, one layer in place of two, and two epochs in place of ten.
"""

# %%
# The data
# --------
#
# The moving average spans 25 rows, which are a day of hourly rows: it takes the daily cycle out of the trend. What rows
# are a day is for you to say (``moving_average``), for nothing is learned about it.

import matplotlib.pyplot as plt
import pandas as pd

from ssmseq.datasets import fetch_ett

data = fetch_ett(variant="h1")
train, validation, test = (data.frame[slice(*data.splits[part])] for part in ("train", "validation", "test"))
scored = pd.concat([validation[-96:], test])
print(f"{len(train):,} rows to train on, {len(test):,} to test")

# %%
# Fit
# ---

from ssmseq import KarmaForecaster, LinearForecaster, RidgeForecaster

sizes = {"horizon": 96, "lookback": 96}
karma = KarmaForecaster(
    **sizes,
    decomposition="moving_average",
    moving_average=25,
    d_model=32,
    n_layers=1,
    share_directions=True,
    time_features=False,
    batch_size=64,
    learning_rate=2e-3,
    max_epochs=2,
    random_state=0,
).fit(train, validation=validation)
karma.history_.round(4)

# %%
# The parts
# ---------
#
# Above, the look-back with its trend, and its season drawn about the mean. Below, the forecast and what is lost from it
# when a part of the network is set to zero. The shares do not add up to the forecast, for a normalisation lies between
# the bands and the last map; and the bands are of channels of a learned token, so that "low" is no slow movement.

from ssmseq import DecompositionDisplay

display = DecompositionDisplay.from_estimator(karma, test).plot(columns=["HUFL", "OT"])

# %%
# The same as a frame, for figures of one's own. Here: how large each part's share is, as the root mean square over the
# horizon in units of the spread of the forecast variate.

parts = display.frame()
shares = parts[parts["part"].str.startswith("share of ")]
size = shares.groupby(["part", "column"])["value"].apply(lambda x: (x**2).mean() ** 0.5).unstack("part")
size = size.div(pd.Series(karma.scale_, index=karma.feature_names_in_), axis=0)
_, axis = plt.subplots(figsize=(8, 4), layout="constrained")
size.plot.barh(width=0.75, ax=axis, color=["#1f2937", "#2b8a3e", "#7048e8"])
axis.invert_yaxis()
axis.set(xlabel="root mean square of the share (training standard deviations)", ylabel="")
axis.spines[["top", "right"]].set_visible(False)
legend = axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)

# %%
# Does it help?
# -------------
#
# The same network without the split, and two linear models. KARMA trains by default on squared error mixed with the
# distance of the Fourier coefficients ("fredf"), so the trained linear model gets this loss as well.

models = {
    "KARMA": karma,
    "KARMA, no trend": KarmaForecaster(**{**karma.get_params(), "decomposition": "none"}).fit(
        train, validation=validation
    ),
    "RLinear, same loss": LinearForecaster(
        **sizes, loss="fredf", learning_rate=5e-3, batch_size=64, max_epochs=2, random_state=0
    ).fit(train, validation=validation),
    "ridge": RidgeForecaster(**sizes).fit(train, validation=validation),
}
errors = pd.DataFrame({name: model.evaluate(scored) for name, model in models.items()}).T
errors[["mse", "mae", "n_windows"]].round(4)

# %%
# What was seen
# -------------

mse, largest = errors["mse"], size.mean()
print(", ".join(f"{name} {value:.3f}" for name, value in mse.items()))
print(", ".join(f"{part} {value:.2f}" for part, value in largest.items()))

# %%
# What the trend adds is far more than what the two bands add; the rest of a forecast comes from the tokens of the
# season, which pass by the bands. The figure says which part of the network a forecast rests on, and not what drives
# the series. Whether the split helps is a matter of the table, not of the figure: after two epochs and with one seed,
# differences of a few percent mean nothing.
#
# Take KARMA where you want to see such parts, or where it wins on your validation part; do not take it for a
# statistical decomposition: for trend and season as statements about the series, use a model that estimates them. Its
# published figures rest on its loss as much as on its network, see :doc:`/forecasting` and :doc:`/benchmarks`.
