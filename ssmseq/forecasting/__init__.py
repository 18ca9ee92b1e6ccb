"""Multivariate forecasting: a frame in, a frame out.

Axis letters: B windows in a batch, V variates, K calendar covariates, L look-back rows, H horizon rows.
"""

from ssmseq.forecasting.baselines import NaiveForecaster, RidgeForecaster
from ssmseq.forecasting.decomposition import DecompositionDisplay
from ssmseq.forecasting.displays import ForecastDisplay, HorizonErrorDisplay
from ssmseq.forecasting.explain import InfluenceDisplay
from ssmseq.forecasting.karma import KarmaForecaster
from ssmseq.forecasting.linear import LinearForecaster
from ssmseq.forecasting.smamba import SMambaForecaster
from ssmseq.forecasting.tsm2 import TSM2Forecaster

__all__ = [
    "DecompositionDisplay",
    "ForecastDisplay",
    "HorizonErrorDisplay",
    "InfluenceDisplay",
    "KarmaForecaster",
    "LinearForecaster",
    "NaiveForecaster",
    "RidgeForecaster",
    "SMambaForecaster",
    "TSM2Forecaster",
]
