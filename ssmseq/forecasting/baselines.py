"""What any forecaster has to beat."""

from typing import Literal

from torch import Tensor

from ssmseq.base import check_number
from ssmseq.forecasting.base import BaseForecaster
from ssmseq.forecasting.windows import Windows


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

    Examples
    --------
    >>> import numpy as np
    >>> from ssmseq import NaiveForecaster
    >>> NaiveForecaster(horizon=3, lookback=2, season_length=2).fit(np.arange(6.0)[:, None]).predict().ravel()
    array([4., 5., 4.])
    """

    validation_fraction = 0.0

    def __init__(
        self,
        *,
        horizon: int = 96,
        lookback: int = 96,
        season_length: int = 1,
        scaler: Literal["standard", "none"] = "standard",
        time_col: str | None = None,
    ):
        self.horizon = horizon
        self.lookback = lookback
        self.season_length = season_length
        self.scaler = scaler
        self.time_col = time_col

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_number("season_length", self.season_length, minimum=1, integer=True)
        if self.season_length > self.lookback:
            raise ValueError(
                f"season_length={self.season_length} is longer than lookback={self.lookback}; raise lookback"
            )

    def _fit_model(self, train: Windows, valid: Windows | None, n_variates: int, n_covariates: int) -> None:
        pass

    def _forecast(self, inputs: Tensor) -> Tensor:
        season = inputs[..., -self.season_length :]
        return season.repeat(1, 1, -(-self.horizon // self.season_length))[..., : self.horizon]
