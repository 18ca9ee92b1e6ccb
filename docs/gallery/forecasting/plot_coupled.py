"""
Coupled variates: where mixing them pays
========================================

On many public sets a linear map that sees each variate alone is as good as a network that sees all of them. Here is a
system where it is not: Lorenz-96, a ring of variates that drive their neighbours, so that the past of one says little
of its own future. The page trains S-Mamba on 24 of them for four epochs, twice: with the columns in the order of the
ring, and shuffled.
"""

# %%
# The system
# ----------
#
# Each variate is driven by one neighbour on its one side and two on its other, and errors double in about 8 rows. There
# is no noise: whoever knows the whole ring exactly can forecast it for some while.

from ssmseq.datasets import make_lorenz96

ring = make_lorenz96(n_rows=3000, n_variates=24, random_state=0)
train, test = ring.iloc[:2500], ring.iloc[2500:]

import matplotlib.pyplot as plt

figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
image = axis.pcolormesh(range(120), range(1, 25), ring.iloc[:120].T, cmap="RdBu_r", vmin=-12, vmax=12)
axis.set(xlabel="row", ylabel="place in the ring")
bar = figure.colorbar(image, ax=axis, label="value")

# %%
# Fit, with the columns in order and shuffled
# -------------------------------------------
#
# Windows are not centred by their own mean (``normalize=False``), since the level of a variate says where it is on the
# attractor. The shuffled frame holds the same 24 series; only the order of the columns differs.

import numpy as np

from ssmseq import NaiveForecaster, RidgeForecaster, SMambaForecaster

HORIZON, LOOKBACK = 12, 24


def s_mamba() -> SMambaForecaster:
    """Return an unfitted network; both frames get the same."""
    return SMambaForecaster(
        horizon=HORIZON,
        lookback=LOOKBACK,
        d_model=64,
        d_ff=64,
        d_state=16,
        d_conv=4,
        dropout=0.0,
        normalize=False,
        time_features=False,
        learning_rate=2e-3,
        max_epochs=4,
        random_state=0,
    )


order = np.random.default_rng(0).permutation(ring.columns)
mixing = s_mamba().fit(train)
shuffled = s_mamba().fit(train[order])
ridge = RidgeForecaster(horizon=HORIZON, lookback=LOOKBACK).fit(train)
naive = NaiveForecaster(horizon=HORIZON, lookback=LOOKBACK).fit(train)

# %%
# The error by rows ahead
# -----------------------
#
# ``evaluate`` gives one mean for all rows ahead, ``HorizonErrorDisplay`` the error of each. Frames with other columns
# need displays of their own, drawn on the same axes.

import pandas as pd

from ssmseq import HorizonErrorDisplay

in_order = HorizonErrorDisplay.from_estimators({"S-Mamba": mixing, "ridge": ridge, "last value": naive}, test)
out_of_order = HorizonErrorDisplay.from_estimators({"S-Mamba, shuffled": shuffled}, test[order])
both = HorizonErrorDisplay(errors=pd.concat([in_order.frame(), out_of_order.frame()]), scaled=True, freq=1).plot()

# %%
# What a forecast rests on
# ------------------------
#
# ``InfluenceDisplay`` asks the model which inputs move its forecast: gradient times input, here the mean absolute value
# over ten forecasts of the test part. ``plot_matrix`` has a row for each variate that is forecast, and a column for
# each input. If a model has found the coupling, the dark cells lie on the diagonal and beside it. What drives ``x_1``
# and ``x_2`` stands at the other end of the frame: that would be the upper right corner.

from ssmseq import InfluenceDisplay

rows = list(range(LOOKBACK, len(test), 50))
influence = InfluenceDisplay.from_estimator(mixing, test, rows=rows)
display = influence.plot_matrix()

# %%
# One row of it over time: which inputs, and how long before the forecast begins, move the forecast of ``x_12``.

display = influence.plot("x_12")

# %%
# Ridge sees each variate alone, so its matrix is a diagonal by construction. Summed by distance in the ring, the
# influence of S-Mamba shows on which neighbours it relies, in order and shuffled.


def by_distance(display: InfluenceDisplay) -> pd.Series:
    """Return the mean share of the influence, in percent, by the place of the input less that of the forecast."""
    places = [int(name.removeprefix("x_")) for name in display.columns]
    sums = np.abs(display.influence).sum(-1)
    shares = 100 * sums / sums.sum(1, keepdims=True)
    distance = (np.subtract.outer(places, places).T + 12) % 24 - 12
    return pd.Series(shares.ravel()).groupby(distance.ravel()).sum() / len(places)


shares = pd.DataFrame(
    {
        "columns in order": by_distance(influence),
        "columns shuffled": by_distance(InfluenceDisplay.from_estimator(shuffled, test[order], rows=rows)),
    }
)
_, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
shares.loc[-8:8].plot.bar(color=["#D55E00", "#6b7280"], rot=0, width=0.8, ax=axis)
axis.set(
    xlabel="place of the input, counted in the ring from the variate forecast", ylabel="share of the influence (%)"
)
axis.spines[["top", "right"]].set_visible(False)
legend = axis.legend(frameon=False)

# %%
# What was seen
# -------------

mse = {name: rows["mse"].mean() for name, rows in both.frame().groupby("estimator", sort=False)}
print(", ".join(f"{name} {value:.3f}" for name, value in mse.items()))
for name, share in shares.items():
    print(f"{name}: {share.loc[0]:.0f} % of the influence its own, {share.loc[-3:3].sum():.0f} % within three places")
sums = np.abs(influence.influence).sum(-1)
print(", ".join(f"{influence.columns[i]}: {100 * sums[i, i] / sums[i].sum():.0f} % its own" for i in (0, 1, 11)))

# %%
# A model that mixes the variates leaves ridge far behind here, after four epochs on 2,500 rows. In order, most of the
# influence on a forecast comes from the variates beside it, and from one side more than from the other, as the
# equations have it. Shuffled, the same network looks at little but the variate itself in the same time. The scan reads
# the variates as a sequence, from both ends, and its convolution joins columns that stand side by side: put columns
# that belong together beside each other, and say in a comparison how they stood. The ring itself is cut at the ends of
# the frame: of the first variates, whose drivers stand at the other end, the network knows little but their own past.
#
# This is a system made for the purpose, without noise. On variates that are coupled weakly, as in
# :doc:`/auto_examples/forecasting/plot_first_forecast`, the same network has no such advantage. Longer training, 200
# and 800 variates, and other models are in :doc:`/benchmarks`; :doc:`/forecasting` says what each model mixes.
