"""scikit-learn-style estimators over selective state-space models.

The public names are imported on first use, so ``import ssmseq`` loads neither torch nor Lightning.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0.dev0"

_HOME = {
    "DNAClassifier": "ssmseq.dna",
    "DNALanguageModel": "ssmseq.dna",
    "DNARegressor": "ssmseq.dna",
    "MutagenesisDisplay": "ssmseq.dna",
    "ECGMambaClassifier": "ssmseq.ecg",
    "Record": "ssmseq.ecg",
    "read_record": "ssmseq.ecg",
    "SMambaForecaster": "ssmseq.forecasting",
    "KarmaForecaster": "ssmseq.forecasting",
    "TSM2Forecaster": "ssmseq.forecasting",
    "NaiveForecaster": "ssmseq.forecasting",
    "RidgeForecaster": "ssmseq.forecasting",
    "LinearForecaster": "ssmseq.forecasting",
    "ForecastDisplay": "ssmseq.forecasting",
    "HorizonErrorDisplay": "ssmseq.forecasting",
    "InfluenceDisplay": "ssmseq.forecasting",
    "DecompositionDisplay": "ssmseq.forecasting",
    "load": "ssmseq.persistence",
    "show_versions": "ssmseq.environment",
}

if TYPE_CHECKING:
    from ssmseq.dna import DNAClassifier, DNALanguageModel, DNARegressor, MutagenesisDisplay
    from ssmseq.ecg import ECGMambaClassifier, Record, read_record
    from ssmseq.environment import show_versions
    from ssmseq.forecasting import (
        DecompositionDisplay,
        ForecastDisplay,
        HorizonErrorDisplay,
        InfluenceDisplay,
        KarmaForecaster,
        LinearForecaster,
        NaiveForecaster,
        RidgeForecaster,
        SMambaForecaster,
        TSM2Forecaster,
    )
    from ssmseq.persistence import load

__all__ = [
    "DNAClassifier",
    "DNALanguageModel",
    "DNARegressor",
    "DecompositionDisplay",
    "ECGMambaClassifier",
    "ForecastDisplay",
    "HorizonErrorDisplay",
    "InfluenceDisplay",
    "KarmaForecaster",
    "LinearForecaster",
    "MutagenesisDisplay",
    "NaiveForecaster",
    "Record",
    "RidgeForecaster",
    "SMambaForecaster",
    "TSM2Forecaster",
    "__version__",
    "load",
    "read_record",
    "show_versions",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'ssmseq' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__():
    return sorted(__all__)
