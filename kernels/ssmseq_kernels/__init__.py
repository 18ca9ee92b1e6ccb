"""The selective-scan core of ssmseq: one operator, one definition, one kernel per kind of device."""

from ssmseq_kernels.scan import available_backends, processor, selective_scan

__all__ = ["available_backends", "processor", "selective_scan"]
