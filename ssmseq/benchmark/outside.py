"""Our forecasters in the benchmarks of others, so that outsiders can check them: fev [1]_ and GIFT-Eval [2]_.

Both benchmarks cut the data, ask for forecasts of their windows and score them; nothing of that is done here. An
estimator is fitted once, on what precedes the first window of each series, and forecasts every window from the rows
before it.

References
----------
.. [1] Shchur et al., "fev-bench: A realistic benchmark for time series forecasting", arXiv 2509.26468.
.. [2] Aksu et al., "GIFT-Eval: A benchmark for general time series forecasting model evaluation", arXiv 2410.10393.
"""

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.base import clone

DECILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LAST_YEAR = 2261  # the last whole year of pandas' stamps; rows that reach beyond it are numbered
FEATURES = {  # field of gluonts -> the parameter of the estimators, and what our columns are called
    "past_feat_dynamic_real": ("past_covariates", "past"),
    "feat_dynamic_real": ("future_covariates", "known"),
    "feat_static_real": ("static_covariates", "static"),
    "feat_static_cat": ("static_covariates", "category"),
}


def predict_for_fev(task, estimator, *, refit: bool = False) -> list[dict[str, list[dict[str, list[float]]]]]:
    """Forecast all windows of a task of fev.

    Parameters
    ----------
    task : fev.Task
        Its horizon, columns and covariates replace those parameters of the estimator. Covariates that the estimator
        has no parameter for are left out, as are dynamic ones that are not numeric, which is warned about.
    estimator : BaseForecaster
        Unfitted; it is cloned. The task's quantiles are those of its network, where it has `quantiles`; otherwise the
        ends of conformal intervals, which need validation rows and whole percentages.
    refit : bool
        Fit afresh for each window, on all that precedes it, and not only for the first.

    Returns
    -------
    list of dict
        For each window, by target column, one dict per series with "predictions" and the quantiles, as
        ``task.evaluation_summary`` takes them.

    Raises
    ------
    ImportError
        If fev is not installed.
    ValueError
        If the estimator cannot give a quantile that the task asks for; and as in its `fit` and `predict`.

    Examples
    --------
    >>> predictions = predict_for_fev(task, SMambaForecaster())  # doctest: +SKIP
    >>> task.evaluation_summary(predictions, model_name="S-Mamba", trained_on_this_dataset=True)  # doctest: +SKIP
    """
    fev = _package("fev")
    found, model = [], None
    for window in task.iter_windows():
        past, future, static = fev.convert_input_data(window, adapter="pandas")
        if static is not None:
            past = past.merge(static, on=task.id_column)
        if model is None or refit:
            model = _configured(
                estimator,
                horizon=task.horizon,
                id_col=task.id_column,
                time_col=task.timestamp_column,
                freq=task.freq,
                target=list(task.target_columns),
                past_covariates=_numeric(past, task.past_dynamic_columns),
                future_covariates=_numeric(past, task.known_dynamic_columns),
                static_covariates=list(task.static_columns),
            ).fit(past)
        options, endings = _outputs(model, task.quantile_levels)
        known = future if getattr(model, "future_covariates", None) else None
        forecast = model.predict(past, future=known, **options)
        keys = dict(zip(("predictions", *map(str, task.quantile_levels)), ("", *endings), strict=True))
        by_target = {}
        for column in task.target_columns:
            blocks = {k: forecast[f"{column}{end}"].to_numpy().reshape(-1, task.horizon) for k, end in keys.items()}
            n_series = len(blocks["predictions"])
            by_target[column] = [{k: block[i].tolist() for k, block in blocks.items()} for i in range(n_series)]
        found.append(by_target)
    return found


class GiftEvalPredictor:
    """A predictor as GIFT-Eval and GluonTS expect it, around any forecaster of this library.

    Parameters
    ----------
    estimator : BaseForecaster
        Unfitted; it is cloned. Its quantiles are found as `predict_for_fev` finds them.
    prediction_length : int, optional
        Rows to forecast; the estimator's `horizon` by default.
    quantile_levels : sequence of float
        The quantiles of the forecasts.

    Attributes
    ----------
    model_ : BaseForecaster
        Fitted on a long frame: each entry of the data set is a series, of one or several variates.

    Examples
    --------
    >>> predictor = GiftEvalPredictor(SMambaForecaster(), prediction_length=48)  # doctest: +SKIP
    >>> evaluate_model(predictor.fit(dataset.validation_dataset), test_data=dataset.test_data, ...)  # doctest: +SKIP
    """

    lead_time = 0

    def __init__(self, estimator, *, prediction_length: int | None = None, quantile_levels: Sequence[float] = DECILES):
        self.estimator = estimator
        self.prediction_length = estimator.horizon if prediction_length is None else prediction_length
        self.quantile_levels = tuple(quantile_levels)

    def fit(self, dataset: Iterable[dict]) -> Self:
        """Fit on entries that end before the windows to forecast, such as GIFT-Eval's ``validation_dataset``.

        Parameters
        ----------
        dataset : iterable of dict
            Entries of GluonTS: "item_id", "start" (a period), "target" (T,) or (V, T), and the fields of covariates.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If an entry has no item_id; and as in the estimator's `fit`.
        """
        entries = [_checked(entry) for entry in dataset]
        if not entries:
            raise ValueError("the data set to fit on has no entries")
        ahead = self.prediction_length
        self._numbered = any((e["start"] + e["target"].shape[-1] + ahead).year > LAST_YEAR for e in entries)
        roles = defaultdict(list)
        for parameter, name in _features(entries[0]):
            roles[parameter].append(name)
        self.model_ = _configured(
            self.estimator,
            horizon=ahead,
            id_col="unique_id",
            time_col="ds",
            freq=None,
            target=_targets(entries[0]),
            **{parameter: roles[parameter] for parameter, _ in FEATURES.values()},
        ).fit(self._frame(entries))
        self._fitted_on = {entry["item_id"] for entry in entries}
        return self

    def predict(self, dataset: Iterable[dict], num_samples: int | None = None) -> Iterator[Any]:
        """Forecast what follows each entry.

        Parameters
        ----------
        dataset : iterable of dict
            Such as the ``input`` of GIFT-Eval's ``test_data``: several windows of an item are entries with the same
            item_id. Covariates known in advance reach `prediction_length` rows further than the target. Without `fit`
            before, the model is first fitted on the shortest history of each item, which precedes all its windows.
        num_samples : int, optional
            Ignored: the forecasts are quantiles.

        Yields
        ------
        gluonts.model.forecast.QuantileForecast
            In the order of the entries, with the mean (our point forecast) and the quantiles: arrays (1 + Q, H), or
            (1 + Q, H, V) of several variates.

        Raises
        ------
        ImportError
            If gluonts is not installed.
        ValueError
            As in `fit`, and if the estimator cannot give the quantiles.
        """
        kind = _package("gluonts", "gluonts.model.forecast").QuantileForecast
        entries = [_checked(entry) for entry in dataset]
        if not hasattr(self, "model_"):
            first: dict[str, dict] = {}
            for entry in entries:
                other = first.setdefault(entry["item_id"], entry)
                if entry["start"] + entry["target"].shape[-1] < other["start"] + other["target"].shape[-1]:
                    first[entry["item_id"]] = entry
            self.fit(first.values())
        found: dict[int, np.ndarray] = {}
        for places in _rounds(entries):
            found |= zip(places, self._forecast([entries[i] for i in places]), strict=True)
        keys = ["mean", *map(str, self.quantile_levels)]
        for i, entry in enumerate(entries):
            start = entry["start"] + entry["target"].shape[-1]
            arrays = found[i] if entry["target"].ndim > 1 else found[i][..., 0]
            yield kind(forecast_arrays=arrays, start_date=start, forecast_keys=keys, item_id=entry["item_id"])

    def _forecast(self, entries: list[dict]) -> np.ndarray:
        """Return the forecasts of entries that are different items, (entries, 1 + Q, H, V)."""
        options, endings = _outputs(self.model_, self.quantile_levels)
        future = self._frame(entries, future=True) if getattr(self.model_, "future_covariates", None) else None
        forecast = self.model_.predict(self._frame(entries, recent=True), future=future, **options)
        names = [[f"{column}{end}" for column in _targets(entries[0])] for end in ("", *endings)]
        arrays = np.stack([forecast[columns].to_numpy() for columns in names])
        return arrays.reshape(len(names), len(entries), self.prediction_length, -1).swapaxes(0, 1)

    def _frame(self, entries: list[dict], *, recent: bool = False, future: bool = False) -> pd.DataFrame:
        """Return entries as one long frame: all rows, those that a forecast needs, or those of the future."""
        parts = []
        for entry in entries:
            n_rows = entry["target"].shape[-1]
            # A new item is scaled by its whole history, one that was fitted on as it was then.
            seen = recent and entry["item_id"] in self._fitted_on
            start = max(n_rows - self.model_.lookback_, 0) if seen else 0
            rows = slice(n_rows, n_rows + self.prediction_length) if future else slice(start, n_rows)
            whole = n_rows + self.prediction_length
            times = np.arange(whole) if self._numbered else pd.period_range(entry["start"], periods=whole)
            columns: dict[str, Any] = {"unique_id": entry["item_id"], "ds": times[rows]}
            if not future:
                columns |= zip(_targets(entry), np.atleast_2d(entry["target"])[:, rows], strict=True)
            for (parameter, name), values in _features(entry).items():
                if not future or parameter == "future_covariates":
                    columns[name] = values if parameter == "static_covariates" else values[rows]
            parts.append(pd.DataFrame(columns))
        return pd.concat(parts, ignore_index=True)


def _package(name: str, module: str | None = None):
    if find_spec(name) is None:
        raise ImportError(f"{name} is not installed: pip install 'ssmseq[outside]'")
    return import_module(module or name)


def _configured(estimator, **wanted):
    """Return a clone that has those of the parameters that there are in it."""
    copy: Any = clone(estimator)
    known = copy.get_params()
    return copy.set_params(**{k: v or None for k, v in wanted.items() if k in known})


def _numeric(frame: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    left_out = [c for c in columns if not pd.api.types.is_numeric_dtype(frame[c].dtype)]
    if left_out:
        warnings.warn(f"the covariates {left_out} are not numeric and are left out", stacklevel=3)
    return [c for c in columns if c not in left_out]


def _outputs(model, levels: Sequence[float]) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments of `predict` that give quantiles, and how the names of their columns end."""
    if not levels:
        return {}, []
    own = getattr(model, "quantiles", None)
    if own is not None:
        lacking = [q for q in levels if q not in own]
        if lacking:
            raise ValueError(f"the quantiles {lacking} are asked for, but the estimator has quantiles={list(own)}")
        return {"quantiles": True}, [f"-q{q:g}" for q in levels]
    percents = [abs(200 * q - 100) for q in levels]
    broken = [q for q, p in zip(levels, percents, strict=True) if abs(p - round(p)) > 1e-6]
    if broken:
        raise ValueError(
            f"the quantiles {broken} are not the ends of an interval of a whole percentage: fit the estimator with "
            f"quantiles={sorted({*levels, 0.5})}"
        )
    ends = [round(p) for p in percents]
    endings = ["" if p == 0 else f"-{'lo' if q < 0.5 else 'hi'}-{p}" for q, p in zip(levels, ends, strict=True)]
    return {"level": sorted({p for p in ends if p})}, endings


def _checked(entry: dict) -> dict:
    if entry.get("item_id") is None:
        raise ValueError("an entry of the data set has no item_id; give each series one, its windows share it")
    return {**entry, "target": np.asarray(entry["target"], dtype=np.float64)}


def _targets(entry: dict) -> list[str]:
    n_variates = 1 if entry["target"].ndim == 1 else len(entry["target"])
    return ["y"] if n_variates == 1 else [f"y{v}" for v in range(n_variates)]


def _features(entry: dict) -> dict[tuple[str, str], Any]:
    """Return covariates by parameter and column: arrays (rows,), or the value of a static one."""
    found: dict[tuple[str, str], Any] = {}
    for field, (parameter, name) in FEATURES.items():
        if entry.get(field) is None:
            continue
        values = np.asarray(entry[field])
        rows = values.ravel() if parameter == "static_covariates" else np.atleast_2d(values)
        text = field == "feat_static_cat"
        found |= {(parameter, f"{name}_{i}"): str(row) if text else row for i, row in enumerate(rows)}
    return found


def _rounds(entries: list[dict]) -> Iterable[list[int]]:
    """Return the entries' places in groups that hold no item twice."""
    count: Counter = Counter()
    rounds = defaultdict(list)
    for i, entry in enumerate(entries):
        rounds[count[entry["item_id"]]].append(i)
        count[entry["item_id"]] += 1
    return rounds.values()
