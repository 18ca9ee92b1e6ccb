"""From series to scaled windows: what lies between a frame that was read and a network."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from ssmseq.forecasting.covariates import calendar_features
from ssmseq.forecasting.frames import FrameLayout, Series
from ssmseq.forecasting.scaling import Scaler
from ssmseq.forecasting.times import future_times
from ssmseq.forecasting.windows import Windows, network_inputs


@dataclass(frozen=True)
class Preparation:
    """How rows become the inputs of a network; found in the training rows."""

    layout: FrameLayout
    scaler: Scaler
    calendar: tuple[str, ...]
    lookback: int
    horizon: int
    dtype: type

    def rows(self, series: Series, columns: tuple, like: Series | None = None) -> np.ndarray:
        """Return scaled rows (T, C): variates, past covariates, calendar, future covariates."""
        scaled = self.scaler.scaled(series, columns, like)
        before = scaled.shape[1] - len(self.layout.future_covariates)
        if np.isnan(scaled[:, before:]).any():  # in rows that the frame lacks
            scaled[:, before:] = pd.DataFrame(scaled[:, before:]).interpolate(limit_direction="both")
        if not self.calendar:
            return scaled
        return np.column_stack([scaled[:, :before], calendar_features(series.times, self.calendar), scaled[:, before:]])

    def windows(self, series: list[Series], columns: tuple | None = None) -> Windows:
        """Return all windows; a series of a long frame that is too short for one is filled up with missing rows."""
        columns = self.layout.columns if columns is None else columns
        blocks = [self.rows(s, columns) for s in series]
        size = self.lookback + self.horizon
        if self.layout.is_long:
            blocks = [_padded(b, size) if self.horizon < len(b) < size else b for b in blocks]
        return Windows(
            blocks,
            n_targets=len(columns),
            n_future=len(self.layout.future_covariates),
            lookback=self.lookback,
            horizon=self.horizon,
            static=np.stack([self.scaler.scaled_static(s) for s in series]),
            dtype=self.dtype,
        )

    def last_inputs(self, series: list[Series], known: list, columns: tuple) -> dict[str, torch.Tensor]:
        """Return the inputs for the rows that follow each series, given their future covariates (H, F) or None."""
        batch = np.stack([self._last_window(s, k, columns) for s, k in zip(series, known, strict=True)])
        static = np.stack([self.scaler.scaled_static(s) for s in series]).astype(self.dtype)
        n_future = len(self.layout.future_covariates)
        past = batch[:, : batch.shape[1] - n_future, : self.lookback]
        return network_inputs(
            torch.from_numpy(batch),
            torch.from_numpy(static) if static.shape[1] else None,
            n_targets=len(columns),
            n_future=n_future,
            lookback=self.lookback,
            has_gaps=bool(np.isnan(past).any()),
        )

    def _last_window(self, series: Series, known, columns: tuple) -> np.ndarray:
        """Return the last look-back and a horizon in which only future covariates are known, (C, L + H)."""
        past = series.rows(slice(max(len(series) - self.lookback, 0), len(series)))
        horizon = np.full((self.horizon, series.values.shape[1]), np.nan)
        if known is not None:
            horizon[:, horizon.shape[1] - known.shape[1] :] = known
        times = past.times.append(future_times(past.times, self.layout.freq, self.horizon))
        whole = Series(series.id, times, np.concatenate([past.values, horizon]), series.static)
        return _padded(self.rows(whole, columns, like=series), self.lookback + self.horizon).T.astype(self.dtype)


def unobserved(series: list[Series], n_targets: int, lookback: int) -> np.ndarray:
    """Return which variates (series, V) have no observed value in their last look-back."""
    return np.stack([np.isnan(s.values[-lookback:, :n_targets]).all(0) for s in series])


def check_observed(series: list[Series], layout: FrameLayout) -> None:
    """Refuse a column that was never observed, and a future covariate that lacks a value in a row that is there."""
    v = len(layout.columns)
    for i, column in enumerate((*layout.columns, *layout.past_covariates, *layout.future_covariates)):
        if all(np.isnan(s.values[:, i]).all() for s in series):
            n_rows = sum(len(s) for s in series)
            raise ValueError(f"column {column!r} has no value in the {n_rows} rows to train on; drop it, or fill it")
        for s in series if column in layout.future_covariates else ():
            lacking = np.isnan(s.values[:, i]) & ~np.isnan(s.values[:, :v]).all(1)
            if lacking.any():
                at = s.times[lacking][0]
                raise ValueError(f"the future covariate {column!r} has no value at {at}; fill it, it counts as known")


def split_rows(
    series: list[Series], layout: FrameLayout, fraction: float, lookback: int, horizon: int
) -> tuple[list[Series], list[Series] | None]:
    """Return the training rows of each series, and the last `fraction` with the look-back before it, or None."""
    if fraction == 0:
        return series, None
    training, held_out = [], []
    for s in series:
        n_valid = round(len(s) * fraction)
        start = len(s) - n_valid - lookback
        if n_valid >= horizon and start >= 0:
            training.append(s.rows(slice(0, len(s) - n_valid)))
            held_out.append(s.rows(slice(start, len(s))))
        elif layout.is_long:  # too short to spare rows
            training.append(s)
        else:
            raise ValueError(
                f"validation_fraction={fraction} of {len(s)} rows leaves {n_valid} rows to validate on and "
                f"{len(s) - n_valid} before them; horizon={horizon} and lookback={lookback} need at least as many: "
                "give more rows, change validation_fraction (0 trains on all rows without early stopping), or shorten "
                "horizon or lookback"
            )
    if not held_out:
        raise ValueError(
            f"no series is long enough to validate on its last validation_fraction={fraction}: pass validation= to "
            "fit, or set it to 0"
        )
    return training, held_out


def continued(found: Series, series: list[Series], layout: FrameLayout, lookback: int) -> Series:
    """Put the look-back before validation rows that follow directly on the training rows of the same series."""
    before = next((s for s in series if s.id == found.id), None)
    if before is None or future_times(before.times, layout.freq, 1)[0] != found.times[0]:
        return found
    return before.tail(lookback).followed_by(found)


def check_length(what: str, parts, given, layout: FrameLayout, lookback: int, horizon: int) -> None:
    """Raise ValueError unless one of the parts has rows for a window; those of a long frame may lack look-back."""
    n_rows, n_given = max(map(len, parts)), max(map(len, given))
    need = horizon + 1 if layout.is_long else lookback + horizon
    if n_rows < need:
        raise ValueError(
            f"the {what} has {n_rows} rows"
            + (f" (of {n_given}; the rest is for validation)" if n_given != n_rows else "")
            + f", but lookback={lookback} + horizon={horizon} need at least {need}: give more rows, or shorten "
            "lookback or horizon"
        )


def _padded(rows: np.ndarray, n_rows: int) -> np.ndarray:
    missing = max(n_rows - len(rows), 0)
    return np.pad(rows, ((missing, 0), (0, 0)), constant_values=np.nan) if missing else rows
