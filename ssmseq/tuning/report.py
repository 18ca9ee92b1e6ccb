"""What a study found: the best settings as YAML, and one HTML page with pictures that needs nothing beside it."""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from ssmseq.plots import data_uri
from ssmseq.tuning.progress import best_baseline, best_of, counts, describe_best, duration, epochs_spared

NO_SETTINGS = {"callbacks", "logger", "trainer_params", "verbose", "checkpoint_folder", "warm_start"}  # of one run
WORDS = {TrialState.COMPLETE: "done", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
WORDS |= {TrialState.RUNNING: "running", TrialState.WAITING: "waiting"}
SIZE = (4.8, 3.0)  # inches: readable when a phone shows it 340 px wide


class Picture(NamedTuple):
    """An image as an address, and the text that stands in for it where it cannot be seen."""

    text: str
    address: str


class Table(NamedTuple):
    """A table whose first column names its rows."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


class Section(NamedTuple):
    """A part of the page."""

    anchor: str
    title: str
    text: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


def best_settings(study: optuna.Study) -> dict[str, Any]:
    """Return the arguments of the constructor of the best trial, fixed and found.

    Raises
    ------
    ValueError
        If no trial has run to its end; the message gives the last reason.
    """
    best = _best(study)
    fixed = {name: value for name, value in study.user_attrs["fixed"].items() if name not in NO_SETTINGS}
    return {**fixed, **best.params}


def settings_yaml(study: optuna.Study) -> str:
    """Return `best_settings` as the file that ``ssmseq fit --config`` takes, with where it is from in its first lines.

    Raises
    ------
    ValueError
        As `best_settings`.
    """
    import yaml

    best, kept = _best(study), study.user_attrs
    lines = [f"# {kept['estimator']}: trial {best.number} of study {study.study_name}", f"# {_against(study)}"]
    return "\n".join(lines) + "\n" + yaml.safe_dump(best_settings(study), sort_keys=False)


def write_report(study: optuna.Study, path: str | os.PathLike) -> Path:
    """Write the page of a study: history, curves, importances, slices, and every trial with its end.

    Parameters
    ----------
    study : optuna.Study
        Made by `tune`.
    path : path
        Of the .html file; folders are made.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    ImportError
        If matplotlib or Jinja2 is not installed.
    ValueError
        If the study was not made by `tune`.
    """
    try:
        import jinja2
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError('the page of a study needs matplotlib and Jinja2: pip install "ssmseq[tune]"') from error
    if "estimator" not in study.user_attrs:
        raise ValueError(f"study {study.study_name!r} was not made by ssmseq tune: it names no estimator")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    title = f"Tuning {study.user_attrs['estimator']}"
    page = template.render(title=title, study=study.study_name, lead=_lead(study), sections=_sections(study))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _best(study: optuna.Study) -> FrozenTrial:
    trials = study.get_trials(deepcopy=False)
    best = best_of(study, trials)
    if best is None:
        reasons = [t.user_attrs["reason"] for t in trials if "reason" in t.user_attrs]
        why = f"; the last one failed: {reasons[-1]}" if reasons else ""
        raise ValueError(f"no trial of study {study.study_name!r} ran to its end{why}")
    return best


def _against(study: optuna.Study) -> str:
    return describe_best(study, study.get_trials(deepcopy=False))


def _lead(study: optuna.Study) -> list[str]:
    trials = study.get_trials(deepcopy=False)
    found = ", ".join(f"{n} {name}" for name, n in counts(trials).items() if n)
    against = _against(study)
    lead = [f"{len(trials)} trials: {found}." + (f" {against[0].upper()}{against[1:]}." if against else "")]
    spared = epochs_spared(trials)
    if spared["share"]:
        lead.append(
            f"{spared['epochs']} epochs were run, where about {spared['without_pruning']} would have been without "
            f"pruning: {100 * spared['share']:.0f} % were spared."
        )
    return lead


def _sections(study: optuna.Study) -> list[Section]:
    trials = study.get_trials(deepcopy=False)
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    found = [_settings_section(study) if done else None, _history_section(study) if done else None]
    found += [_importance_section(study, done), _slice_section(study, done), _trial_section(study, trials)]
    found += [_failure_section(trials), _origin_section(study)]
    return [section for section in found if section is not None]


def _settings_section(study: optuna.Study) -> Section:
    kept, best = study.user_attrs, _best(study)
    rows = [[name, _text(value), _range(kept["space"].get(name))] for name, value in best_settings(study).items()]
    values = {"best trial": best.values[0], **kept["baselines"]}
    compared = [[name, f"{value:.5g}"] for name, value in values.items()]
    return Section(
        "best",
        "Best settings",
        tables=[
            Table(f"Trial {best.number}.", ["setting", "value", "searched"], rows),
            Table(f"{kept['metric']} of the validation part.", ["model", kept["metric"]], compared),
        ],
    )


def _history_section(study: optuna.Study) -> Section:
    from optuna.visualization import matplotlib as plots

    metric, baseline = study.user_attrs["metric"], best_baseline(study)

    def history():
        axes = plots.plot_optimization_history(study, target_name=metric)
        if baseline is not None:
            axes.axhline(baseline[1], color="black", linestyle="--", linewidth=1, label=baseline[0])
        axes.legend(fontsize=8)
        return axes

    text = "Value of each trial that ran to its end, and the best so far"
    pictures = [_picture(text + (f"; the dashed line is {baseline[0]}." if baseline else "."), history)]
    if any(trial.intermediate_values for trial in study.get_trials(deepcopy=False)):
        pictures.append(_picture("Validation loss of each trial by epoch.", lambda: _curves(study)))
    return Section("history", "History", pictures=pictures)


def _curves(study: optuna.Study):
    from matplotlib.ticker import MaxNLocator
    from optuna.visualization import matplotlib as plots

    axes = plots.plot_intermediate_values(study)
    _remove_legend(axes)  # an entry for each trial says nothing
    kept = study.direction == optuna.study.StudyDirection.MINIMIZE
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation loss" if kept else "minus validation loss")
    return axes


def _importance_section(study: optuna.Study, done: list[FrozenTrial]) -> Section | None:
    from optuna.visualization import matplotlib as plots

    title = "What mattered"
    if len(done) < 3:
        return Section(
            "importances", title, text=[f"Importances need three trials at least that ran; {len(done)} did."]
        )
    if len({trial.values[0] for trial in done}) == 1:
        return Section("importances", title, text=["All trials have the same value, whatever their settings."])

    def importances():
        axes = plots.plot_param_importances(study)
        _remove_legend(axes)
        return axes

    text = (
        "Share of the differences between trials that each setting accounts for; uncertain below some dozens of trials."
    )
    return Section("importances", title, pictures=[_picture(text, importances)])


def _slice_section(study: optuna.Study, done: list[FrozenTrial]) -> Section | None:
    from optuna.visualization import matplotlib as plots

    names = [name for name in study.user_attrs["space"] if len({str(t.params.get(name)) for t in done}) > 1]
    if not names:
        return None
    metric = study.user_attrs["metric"]
    pictures = [
        _picture(f"{metric} by {name}.", lambda name=name: plots.plot_slice(study, params=[name], target_name=metric))
        for name in names
    ]
    return Section("slices", "Each setting by itself", pictures=pictures)


def _trial_section(study: optuna.Study, trials: list[FrozenTrial]) -> Section:
    names = list(study.user_attrs["space"])
    heads = ["trial", "end", study.user_attrs["metric"], "epochs", "time", *names]
    sign = 1 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1
    order = sorted(trials, key=lambda t: (t.state != TrialState.COMPLETE, sign * (t.values or [0])[0], t.number))
    rows = []
    for trial in order:
        kept = trial.user_attrs
        value = f"{trial.values[0]:.5g}" if trial.state == TrialState.COMPLETE else ""
        spent = duration(kept["seconds"]) if "seconds" in kept else ""
        rows.append([str(trial.number), WORDS[trial.state], value, str(kept.get("epochs", "")), spent])
        rows[-1] += [_text(trial.params[name]) if name in trial.params else "" for name in names]
    caption = "Best first; of pruned trials the loss at their last epoch is no value of the metric, and is left out."
    return Section("trials", "All trials", tables=[Table(caption, heads, rows)])


def _failure_section(trials: list[FrozenTrial]) -> Section | None:
    rows = [
        [str(t.number), "failed", t.user_attrs.get("reason", "no reason was recorded")] for t in trials if _failed(t)
    ]
    for trial in trials:
        if trial.state == TrialState.PRUNED:
            rows.append([str(trial.number), "pruned", f"others were better after {trial.last_step} epochs"])
    if not rows:
        return None
    return Section("ended", "Failed and pruned", tables=[Table("With the reason.", ["trial", "end", "reason"], rows)])


def _failed(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL


def _origin_section(study: optuna.Study) -> Section:
    names = {"data": "data", "checksum": "checksum of the data", "command": "command", "version": "ssmseq"}
    rows = [[words, str(study.user_attrs[name])] for name, words in names.items() if name in study.user_attrs]
    times = [t.datetime_complete for t in study.get_trials(deepcopy=False) if t.datetime_complete is not None]
    if times:
        rows.append(["finished", f"{min(times):%Y-%m-%d %H:%M} to {max(times):%Y-%m-%d %H:%M}"])
    rows.append(["Optuna", optuna.__version__])
    return Section("origin", "Where the numbers come from", tables=[Table("", ["what", "which"], rows)])


def _picture(text: str, draw: Callable[[], Any]) -> Picture:
    """Draw a picture of Optuna's, at a size that a phone can show; no window is left behind."""
    from matplotlib import pyplot as plt

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", UserWarning)  # of a logarithmic axis of equal values
        axes = draw()
        figure = axes.figure
        for side in ("left", "center", "right"):
            axes.set_title("", loc=side)  # the caption says it
        figure.set_size_inches(*SIZE)
        figure.set_layout_engine("tight")  # Optuna places colour bars by hand
        address = data_uri(figure)
    plt.close(figure)
    return Picture(text, address)


def _remove_legend(axes) -> None:
    legend = axes.get_legend()
    if legend is not None:
        legend.remove()


def _range(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "fixed"
    if entry["type"] == "categorical":
        return ", ".join(_text(choice) for choice in entry["choices"])
    return f"{_text(entry['low'])} to {_text(entry['high'])}" + (", logarithmic" if entry.get("log") else "")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
