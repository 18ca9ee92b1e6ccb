"""Search over the settings of an estimator with Optuna: `tune`, what it searches, and where studies live."""

from ssmseq.tuning.report import best_settings, write_report
from ssmseq.tuning.search import tune
from ssmseq.tuning.spaces import load_space, space_names
from ssmseq.tuning.storage import open_storage

__all__ = ["best_settings", "load_space", "open_storage", "space_names", "tune", "write_report"]
