"""Multivariate forecasting: a frame in, a frame out.

Axis letters: B windows in a batch, V variates, K calendar covariates, L look-back rows, H horizon rows.
"""

from ssmseq.forecasting.baselines import NaiveForecaster, RidgeForecaster
from ssmseq.forecasting.displays import ForecastDisplay
from ssmseq.forecasting.karma import KarmaForecaster
from ssmseq.forecasting.linear import LinearForecaster
from ssmseq.forecasting.smamba import SMambaForecaster

__all__ = [
    "ForecastDisplay",
    "KarmaForecaster",
    "LinearForecaster",
    "NaiveForecaster",
    "RidgeForecaster",
    "SMambaForecaster",
]
