"""What any forecaster has to beat: the last value or season, and the best linear map."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ssmseq.base import check_number
from ssmseq.forecasting.base import BaseForecaster
from ssmseq.forecasting.moments import centred_moments
from ssmseq.forecasting.tokens import InputSizes
from ssmseq.forecasting.windows import Windows, fill_gaps

RANK = 1e-12  # variance of a direction, in units of the largest, below which rounding is all there is


class NaiveForecaster(BaseForecaster):
    """Repeat the last value, or the last season.

    Parameters
    ----------
    horizon : int
        Rows to forecast.
    lookback : int
        Rows of history that each forecast is given; only the last `season_length` are used. Set it to that of a
        competitor to be measured on the same windows.
    season_length : int
        In rows. 1 repeats the last row; 24 repeats the last day of hourly rows.
    scaler : {"standard", "none"}
        Only sets the scale on which `evaluate` and `score` measure.
    time_col : str, optional
        Column that holds the times; see `fit`.
    id_col : str, optional
        Column that tells the series of a long frame apart. A frame with the columns unique_id, ds and y needs no word.
    target : str or list of str, optional
        Columns to forecast; by default "y" of a long frame, else all that have no other role.
    freq : str or int, optional
        Distance of the rows, as a pandas alias, or as an int for numbered rows; inferred by default.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmseq import NaiveForecaster
    >>> NaiveForecaster(horizon=3, lookback=2, season_length=2).fit(np.arange(6.0)[:, None]).predict().ravel()
    array([4., 5., 4.])
    """

    validation_fraction = 0.0
    window_dtype = np.float64

    def __init__(
        self,
        *,
        horizon: int = 96,
        lookback: int = 96,
        season_length: int = 1,
        scaler: Literal["standard", "none"] = "standard",
        time_col: str | None = None,
        id_col: str | None = None,
        target: str | Sequence[str] | None = None,
        freq: str | int | None = None,
    ):
        self.horizon = horizon
        self.lookback = lookback
        self.season_length = season_length
        self.scaler = scaler
        self.time_col = time_col
        self.id_col = id_col
        self.target = target
        self.freq = freq

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_number("season_length", self.season_length, minimum=1, integer=True)
        if self.season_length > self.lookback:
            raise ValueError(
                f"season_length={self.season_length} is longer than lookback={self.lookback}; raise lookback"
            )

    def _fit_model(self, train: Windows, valid: Windows | None, sizes: InputSizes) -> int:
        return self.lookback

    def _forecast(self, inputs: dict[str, Tensor]) -> Tensor:
        season = inputs["past"][..., -self.season_length :]
        return season.repeat(1, 1, -(-self.horizon // self.season_length))[..., : self.horizon]


class RidgeForecaster(BaseForecaster):
    r"""One linear map from look-back to horizon, shared by all variates and solved for in closed form.

    Every window has the mean of its look-back taken off and put back on the forecast,

    .. math:: \hat y = W (x - \bar x) + \bar x, \qquad
        W = \arg\min_W \; \operatorname{mean} \lVert y - \bar x - W (x - \bar x) \rVert^2
        + \alpha \lVert W \rVert^2

    where the mean runs over all windows of all variates of the training part. There are no epochs and no seeds, and a
    fit takes seconds. A network that does not beat this has found nothing but a linear map.

    Candidates for `lookback` and `alpha` are compared by the mean squared error of all windows of the validation part;
    the map is not fitted again on that part afterwards.

    Parameters
    ----------
    horizon : int
        Rows to forecast, H.
    lookback : int or sequence of int
        Rows of history that each forecast sees, L; or candidates. All candidates forecast the same validation rows, so
        the frame has to be long enough for the longest.
    alpha : float or sequence of float
        Penalty on the squared weights, in units of the mean square of the scaled values; or candidates. 0 is least
        squares, with the smallest weights where the data leave a choice.
    validation_fraction : float
        Share of the rows, at the end of the frame, that the candidates are compared on. 0 fits on all rows; then
        there can be but one candidate.
    scaler : {"standard", "none"}
        Standardise each column by its training rows. Unscaled, columns of large variance decide the shared map.
    time_col : str, optional
        Column that holds the times; see `fit`.
    id_col : str, optional
        Column that tells the series of a long frame apart. A frame with the columns unique_id, ds and y needs no word.
    target : str or list of str, optional
        Columns to forecast; by default "y" of a long frame, else all that have no other role.
    freq : str or int, optional
        Distance of the rows, as a pandas alias, or as an int for numbered rows; inferred by default.

    Attributes
    ----------
    coef_ : array (horizon, lookback)
        The map W.
    lookback_ : int
        The look-back chosen.
    alpha_ : float
        The penalty chosen.
    cv_results_ : pandas.DataFrame
        One row per pair of candidates: lookback, alpha, train_mse, and valid_mse where there is a validation part. Both
        are mean squared errors of the scaled values.
    n_features_in_ : int
    feature_names_in_ : array of str
    mean_, scale_ : array (variates,)
        Of the scaler.

    References
    ----------
    Toner and Darlow, "An analysis of linear time series forecasting models", arXiv 2403.14587.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmseq import RidgeForecaster
    >>> wave = np.sin(np.arange(200.0) / 5)[:, None]
    >>> est = RidgeForecaster(horizon=3, lookback=[2, 8], alpha=[0, 0.1]).fit(wave)
    >>> (est.lookback_, est.alpha_)
    (8, 0.0)
    >>> est.predict().ravel().round(3) == np.sin(np.array([200, 201, 202]) / 5).round(3)
    array([ True,  True,  True])
    """

    window_dtype = np.float64

    def __init__(
        self,
        *,
        horizon: int = 96,
        lookback: int | Sequence[int] = 96,
        alpha: float | Sequence[float] = (0.0, 0.001, 0.01, 0.1),
        validation_fraction: float = 0.2,
        scaler: Literal["standard", "none"] = "standard",
        time_col: str | None = None,
        id_col: str | None = None,
        target: str | Sequence[str] | None = None,
        freq: str | int | None = None,
    ):
        self.horizon = horizon
        self.lookback = lookback
        self.alpha = alpha
        self.validation_fraction = validation_fraction
        self.scaler = scaler
        self.time_col = time_col
        self.id_col = id_col
        self.target = target
        self.freq = freq

    def _check_parameters(self) -> None:
        for name in ("lookback", "alpha"):
            if not _candidates(getattr(self, name)):
                raise ValueError(f"{name} must be a number or candidates to choose from, got {getattr(self, name)!r}")
        super()._check_parameters()
        for alpha in _candidates(self.alpha):
            check_number("alpha", alpha, minimum=0)

    def _lookbacks(self) -> tuple:
        return _candidates(self.lookback)

    def _fit_model(self, train: Windows, valid: Windows | None, sizes: InputSizes) -> int:
        lookbacks, alphas = self._lookbacks(), _candidates(self.alpha)
        if valid is None and len(lookbacks) * len(alphas) > 1:
            raise ValueError(
                f"validation_fraction=0 leaves no rows to choose between lookback={self.lookback} and "
                f"alpha={self.alpha}: raise it, pass validation= to fit, or set both to one number"
            )
        rows, best, best_error = [], None, np.inf
        for lookback in map(int, lookbacks):
            moments = centred_moments(_whole(train), lookback, self.horizon)
            spared = train.lookback - lookback  # rows before which only a longer look-back begins
            held_out = None if valid is None else centred_moments(_whole(valid, spared), lookback, self.horizon)
            for alpha, coef in zip(map(float, alphas), _solve(moments, lookback, alphas), strict=True):
                error = 0.0 if held_out is None else _mean_square(held_out, coef)
                found = {"lookback": lookback, "alpha": alpha, "train_mse": _mean_square(moments, coef)}
                rows.append(found if held_out is None else found | {"valid_mse": error})
                if error < best_error:
                    best, best_error = (lookback, alpha, coef), error
        if best is None:
            raise ValueError("no candidate has a finite validation error; look for extreme values in the data")
        lookback, self.alpha_, self.coef_ = best
        self.cv_results_ = pd.DataFrame(rows)
        return lookback

    def _forecast(self, inputs: dict[str, Tensor]) -> Tensor:
        past = inputs["past"]
        mean = past.mean(-1, keepdim=True)
        return (past - mean) @ torch.from_numpy(self.coef_).T + mean

    def _export_state(self) -> tuple[dict, dict[str, Tensor]]:
        state, tensors = super()._export_state()
        state |= {"alpha": self.alpha_, "cv_results": self.cv_results_.to_dict("list")}
        return state, tensors | {"coef": torch.from_numpy(self.coef_)}

    def _import_state(self, state: dict, tensors: dict[str, Tensor]) -> None:
        super()._import_state(state, tensors)
        self.alpha_, self.cv_results_ = state["alpha"], pd.DataFrame(state["cv_results"])
        self.coef_ = tensors["coef"].numpy()
        if self.coef_.shape != (self.horizon_, self.lookback_):
            raise ValueError(
                f"the map is of shape {self.coef_.shape}, but horizon and lookback are {self.horizon_, self.lookback_}"
            )


def _whole(windows: Windows, spared: int = 0) -> list[np.ndarray]:
    """Return the series from row `spared` on, with gaps filled by interpolation."""
    blocks = [block[spared:].T for block in windows.blocks()]
    if windows.has_gaps:
        blocks = [fill_gaps(block, torch.isnan(block)) for block in blocks]
    return [block.T.numpy() for block in blocks]


def _candidates(value) -> tuple:
    return tuple(value) if np.iterable(value) and not isinstance(value, str) else (value,)


def _solve(moments: np.ndarray, lookback: int, alphas: tuple) -> Iterator[np.ndarray]:
    """Yield the map (H, L) of each penalty, from the moments (L + H, L + H) of centred windows."""
    values, vectors = np.linalg.eigh(moments[:lookback, :lookback])
    # Centred look-backs sum to zero, so one direction at least has no variance; its map is zero, as in least squares.
    kept = values > RANK * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    products = moments[lookback:, :lookback] @ vectors
    for alpha in alphas:
        yield products / (values + alpha) @ vectors.T


def _mean_square(moments: np.ndarray, coef: np.ndarray) -> float:
    """Return the mean squared error that a map (H, L) makes on the windows of these moments (L + H, L + H)."""
    lookback = coef.shape[1]
    inputs, products = moments[:lookback, :lookback], moments[lookback:, :lookback]
    total = np.trace(moments[lookback:, lookback:]) - 2 * np.vdot(coef, products) + np.vdot(coef @ inputs, coef)
    return max(float(total) / len(coef), 0.0)  # rounding can leave an error of nothing below zero
