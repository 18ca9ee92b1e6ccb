"""Multilabel classification of electrocardiograms: from record files to calibrated labels."""
