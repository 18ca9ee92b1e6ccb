"""Simple features of electrocardiograms for a logistic regression, which is what a network has to beat.

Of every lead: mean, standard deviation, five quantiles, and the logarithm of the power in four bands. Of lead II: heart
rate, and spread of the distances between beats. Beats are peaks of the squared slope between 5 and 15 Hz, averaged over
0.15 s [1]_, at least 0.25 s apart and above half of the 98th percentile.

References
----------
.. [1] Pan, J. and Tompkins, W. J. (1985). A real-time QRS detection algorithm. IEEE TBME 32(3).
   https://doi.org/10.1109/TBME.1985.325532
"""

import numpy as np
from scipy import signal
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
BANDS = ((0.5, 4), (4, 10), (10, 20), (20, 40))  # Hz
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)


def features(records: list) -> np.ndarray:
    """Return the features (n, 11 leads + 3) of records that have the same leads."""
    return np.stack([np.concatenate([_of_leads(record), _of_rhythm(record)]) for record in records])


def logistic_regression(penalty: float):
    """Return one logistic regression for each label, on standardised features; `penalty` is scikit-learn's C."""
    return make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression(C=penalty, max_iter=5000)))


def beats(record) -> np.ndarray:
    """Return the times of the beats in seconds."""
    rate = record.sampling_rate
    lead = record.signal[record.lead_names.index("II") if "II" in record.lead_names else 0].astype(np.float64)
    band = signal.butter(2, (5, 15), "bandpass", fs=rate, output="sos")
    slope = np.gradient(signal.sosfiltfilt(band, lead))
    width = max(round(0.15 * rate), 1)
    energy = np.convolve(slope**2, np.ones(width) / width, "same")
    peaks, _ = signal.find_peaks(energy, height=np.quantile(energy, 0.98) / 2, distance=max(round(0.25 * rate), 1))
    return peaks / rate


def _of_leads(record) -> np.ndarray:
    x = record.signal.astype(np.float64)
    frequencies, density = signal.welch(
        x, record.sampling_rate, nperseg=min(x.shape[1], round(2 * record.sampling_rate))
    )
    powers = [density[:, (frequencies >= low) & (frequencies < high)].sum(1) for low, high in BANDS]
    found = [x.mean(1), x.std(1), *np.quantile(x, QUANTILES, axis=1), *np.log(np.array(powers) + 1e-9)]
    return np.concatenate(found)


def _of_rhythm(record) -> np.ndarray:
    distances = np.diff(beats(record))
    if len(distances) < 2:
        return np.zeros(3)
    return np.array([60 / np.median(distances), distances.std(), np.sqrt(np.mean(np.diff(distances) ** 2))])
