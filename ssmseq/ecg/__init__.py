"""Multilabel classification of electrocardiograms: from record files to calibrated labels.

The names are imported on first use: records, quality and metrics load no torch.
"""

import importlib
from typing import TYPE_CHECKING

_HOME = {
    "ECGDisplay": "ssmseq.ecg.displays",
    "ECGMambaClassifier": "ssmseq.ecg.classifier",
    "LabelCurvesDisplay": "ssmseq.ecg.curves",
    "Preprocessing": "ssmseq.ecg.preprocessing",
    "Record": "ssmseq.ecg.records",
    "SaliencyDisplay": "ssmseq.ecg.displays",
    "read_record": "ssmseq.ecg.records",
    "write_model_report": "ssmseq.ecg.report",
    "write_record_report": "ssmseq.ecg.report",
}

if TYPE_CHECKING:
    from ssmseq.ecg.classifier import ECGMambaClassifier
    from ssmseq.ecg.curves import LabelCurvesDisplay
    from ssmseq.ecg.displays import ECGDisplay, SaliencyDisplay
    from ssmseq.ecg.preprocessing import Preprocessing
    from ssmseq.ecg.records import Record, read_record
    from ssmseq.ecg.report import write_model_report, write_record_report

__all__ = [
    "ECGDisplay",
    "ECGMambaClassifier",
    "LabelCurvesDisplay",
    "Preprocessing",
    "Record",
    "SaliencyDisplay",
    "read_record",
    "write_model_report",
    "write_record_report",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'ssmseq.ecg' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
