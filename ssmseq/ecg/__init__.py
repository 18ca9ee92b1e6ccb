"""Multilabel classification of electrocardiograms: from record files to calibrated labels.

The names are imported on first use: records, quality and metrics load no torch.
"""

import importlib
from typing import TYPE_CHECKING

_HOME = {
    "ECGMambaClassifier": "ssmseq.ecg.classifier",
    "Preprocessing": "ssmseq.ecg.preprocessing",
    "Record": "ssmseq.ecg.records",
    "read_record": "ssmseq.ecg.records",
}

if TYPE_CHECKING:
    from ssmseq.ecg.classifier import ECGMambaClassifier
    from ssmseq.ecg.preprocessing import Preprocessing
    from ssmseq.ecg.records import Record, read_record

__all__ = ["ECGMambaClassifier", "Preprocessing", "Record", "read_record"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'ssmseq.ecg' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
