"""
Your first forecast, in a minute on a CPU
=========================================

A frame goes in and a frame comes out: this page reads a real series, trains S-Mamba on it for two epochs, forecasts the
next four days, measures the error beside two baselines, and saves the model. The network has a quarter of the width of
the published one and a fifth of its epochs, so that the page is built quickly.
"""

# %%
# The data
# --------
#
# ETTh1 is two years of hourly measurements of an electricity transformer: six loads and the oil temperature ``OT``, one
# row per hour and one column per variate. ``fetch_ett`` takes the file from the folder that the environment variable
# SSMSEQ_DATA names, or downloads it once and checks it. The splits are those of the literature, in the order of time.

import pandas as pd

from ssmseq.datasets import fetch_ett

data = fetch_ett(variant="h1")
train, validation, test = (data.frame[slice(*data.splits[part])] for part in ("train", "validation", "test"))
data.frame.tail(3)

# %%
# Fit and predict
# ---------------
#
# ``horizon`` is how many rows are forecast, ``lookback`` how many each forecast sees. With ``validation`` the model
# keeps the weights of the epoch that was best there. Without it, the last fifth of the rows would serve for that.

from ssmseq import SMambaForecaster

forecaster = SMambaForecaster(
    horizon=96, lookback=96, d_model=64, d_ff=64, learning_rate=5e-4, max_epochs=2, random_state=0
)
_ = forecaster.fit(train, validation=validation)
forecaster.history_.round(4)

# %%
# ``predict`` forecasts what follows the frame that it is given. The forecast has the same columns, units and times.

forecast = forecaster.predict(test)
forecast.head(3)

# %%
# Measure it beside something simple
# ----------------------------------
#
# ``evaluate`` forecasts every window of a frame, one row apart. The first ``lookback`` rows serve as history only, so
# 96 rows of the validation part are put before the test part: then the targets are the test part, no more and no less.
# Errors are of standardised values, as in published tables.
#
# The baselines are one linear map from look-back to horizon, solved for in closed form, and the last day repeated.

from ssmseq import NaiveForecaster, RidgeForecaster

rivals = {
    "S-Mamba, 2 epochs": forecaster,
    "ridge": RidgeForecaster(horizon=96, lookback=96).fit(train, validation=validation),
    "last day repeated": NaiveForecaster(horizon=96, lookback=96, season_length=24).fit(train),
}
scored = pd.concat([validation[-96:], test])
errors = pd.DataFrame({name: rival.evaluate(scored) for name, rival in rivals.items()}).T
errors[["mse", "mae", "mase", "n_windows"]].round(3)

# %%
# One mean hides where a model is better; the error by the number of rows ahead shows it. That of repeating the last day
# rises in steps of a day, since the day that is repeated falls back by one whenever another day has passed.

from ssmseq import HorizonErrorDisplay

display = HorizonErrorDisplay.from_estimators(rivals, scored).plot()

# %%
# Look at a forecast
# ------------------
#
# ``ForecastDisplay`` forecasts the last ``horizon`` rows of a frame from those before them, beside what happened.

from ssmseq import ForecastDisplay

display = ForecastDisplay.from_estimator(forecaster, test).plot(columns=["HUFL", "MUFL", "LUFL", "OT"])

# %%
# Save and load
# -------------
#
# A saved model is a folder with a JSON file and the weights as safetensors, never a pickle. The loaded model forecasts
# the same to the last bit.

import tempfile
from pathlib import Path

import ssmseq

with tempfile.TemporaryDirectory() as folder:
    forecaster.save(Path(folder, "model"))
    loaded = ssmseq.load(Path(folder, "model"))
print("same forecast after loading:", loaded.predict(test).equals(forecast))

# %%
# What was seen
# -------------

mse = errors["mse"]
print(", ".join(f"{name} {value:.3f}" for name, value in mse.items()))
print(f"S-Mamba less ridge: {100 * (mse['S-Mamba, 2 epochs'] / mse['ridge'] - 1):+.1f} %")

# %%
# Both learned models are well below repeating the last day, and within a few percent of each other: the seven variates
# of this set drive each other little, and a linear map finds nearly all there is. More epochs and the published width
# change that by a few percent (:doc:`/benchmarks`). On variates like these, take ridge unless a network is measurably
# better; :doc:`/auto_examples/forecasting/plot_coupled` shows data where it is, by much. All that a frame may look like
# is in :doc:`/forecasting`, and how to search for better settings in :doc:`/tuning`.
