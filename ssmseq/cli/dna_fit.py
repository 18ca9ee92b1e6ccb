"""`ssmseq dna fit`: train a language model on a FASTA file, save it, and compare it with Markov models."""

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssmseq.cli.contract import INTERRUPTED, OK, DataMissingError, UsageError, add_common_options, print_json, remark
from ssmseq.cli.dna import FASTA_HELP, ORDERS_HELP, both_strands, open_fasta, parse_orders, score_parts, total_of
from ssmseq.cli.fit import CONFIG_HELP, NO_OPTIONS, _check_folder, _config_first, _readable
from ssmseq.cli.progress import FitOutcome, fit_in_sight

if TYPE_CHECKING:
    import pandas as pd

    from ssmseq.dna import Fasta

USAGE = "ssmseq dna fit FASTA --save FOLDER [--regions FILE] [--validation NAMES|FILE] [--config FILE] [options]"
DESCRIPTION = (
    "Train a language model of DNA and save it as a folder of config.json and model.safetensors. Afterwards print its "
    "bits per base on the validation part, beside those of Markov models that counted the same training part (on both "
    "strands, unless --reverse_complement is none). The epoch was chosen on that part, so that the model's figure is "
    "slightly favoured: hold out regions of your own, and measure on them with `ssmseq dna score`, for a figure that "
    "is not."
)
VALIDATION_HELP = (
    "what is held out: names of contigs between commas, or a BED, GFF or GTF file of regions (default: the last "
    "--validation_fraction of the bases)"
)


def run(argv: list[str]) -> int:
    """Run ``ssmseq dna fit``."""
    parser = _parser()
    try:
        options = vars(parser.parse_args(_config_first(argv)))
    except argparse.ArgumentError as error:
        raise UsageError(_readable(str(error)), parser.prog) from error
    orders = parse_orders(options["markov"], parser.prog)
    save, quiet = Path(options["save"]), options.get("quiet", False)
    _check_folder(save)
    model = _model(options, save)
    fasta = open_fasta(options["fasta"])
    regions = _file(options.get("regions"))
    validation = _validation(options.get("validation"), fasta)
    data = {"regions": regions, "validation": validation}
    outcome = fit_in_sight(model, options["fasta"], **data, quiet=quiet, bar=_bar)
    if not outcome.is_main_process:
        return OK
    model.save(save)
    train, held_out = _parts(model, fasta, regions, validation)
    compared = {} if held_out is None else _compare(model, fasta, train, held_out, orders, quiet)
    _report(model, options, train, held_out, compared, outcome)
    return INTERRUPTED if outcome.interrupted else OK


def _parser():
    from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

    from ssmseq.dna import DNALanguageModel

    parser = ArgumentParser(
        prog="ssmseq dna fit", usage=USAGE, description=DESCRIPTION, allow_abbrev=False, exit_on_error=False
    )
    # What is not given stays out of --print_config: a null in the file would count as given.
    nothing = argparse.SUPPRESS
    parser.add_argument("fasta", metavar="FASTA", type=str, default=nothing, help=FASTA_HELP)
    parser.add_argument("--save", metavar="FOLDER", type=str, required=True, default=nothing, help="of the model")
    parser.add_argument(
        "--regions", metavar="FILE", type=str, default=nothing, help="BED to train on (default: the whole file)"
    )
    parser.add_argument("--validation", metavar="NAMES|FILE", type=str, default=nothing, help=VALIDATION_HELP)
    parser.add_argument("--markov", metavar="ORDERS", type=str, default="0-12", help=f"{ORDERS_HELP} (default: 0-12)")
    parser.add_argument(
        "--resume",
        action="store_true",
        default=nothing,
        help="write the state of the training into SAVE/checkpoints after every epoch, and go on from what is there",
    )
    add_common_options(parser, default=nothing)
    parser.add_argument("--config", metavar="FILE", action=ActionConfigFile, help=CONFIG_HELP)
    skipped: set[str | int] = {*NO_OPTIONS, "random_state"}
    parser.add_class_arguments(DNALanguageModel, skip=skipped)
    parser.add_argument("--random_state", type=int | None, default=None, help="Seed that repeats a run.")
    return parser


def _model(options: dict[str, Any], save: Path):
    from ssmseq.dna import DNALanguageModel

    names = DNALanguageModel().get_params()
    model = DNALanguageModel(**{name: value for name, value in options.items() if name in names})
    if options.get("resume") and model.checkpoint_folder is None:
        model.set_params(checkpoint_folder=str(save / "checkpoints"))
    return model


def _file(path: str | None) -> str | None:
    if path is not None and not Path(path).is_file():
        raise DataMissingError(f"there is no file of regions {path}: check the path")
    return path


def _validation(given: str | None, fasta: "Fasta") -> str | list[str] | None:
    """Return names of contigs, or the path of a file of regions."""
    if given is None or (Path(given).is_file() and given not in fasta.contigs):
        return given
    names = given.split(",")
    if all(name in fasta.contigs for name in names):
        return names
    some = ", ".join([*fasta.contigs][:5]) + (", ..." if len(fasta.contigs) > 5 else "")
    raise DataMissingError(f"--validation {given} names no file, nor contigs of {fasta.path}, which are {some}")


def _bar():
    from ssmseq.dna.tracks import base_bar
    from ssmseq.training import Callback  # made here, because it costs the import of Lightning

    class Bar(Callback):
        """A bar of bases read, with the losses of the last epoch."""

        def on_train_start(self, trainer, pl_module):
            loader: Any = trainer.train_dataloader
            per_epoch = int(trainer.num_training_batches) * loader.batch_size * loader.dataset.length
            self.bar = base_bar(per_epoch * (trainer.max_epochs or 1), trainer.is_global_zero)
            self.bar.update(per_epoch * trainer.current_epoch)
            self.bar.unpause()  # what an earlier call read does not count for the speed

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            _, targets = batch
            self.bar.update(targets.shape[0] * targets.shape[-1] * trainer.world_size)

        def on_train_epoch_start(self, trainer, pl_module):
            self._show_losses(trainer, trainer.current_epoch)

        def on_train_end(self, trainer, pl_module):
            self._show_losses(trainer, trainer.current_epoch)

        def _show_losses(self, trainer, done: int) -> None:
            # Not at the end of an epoch: the loss of the training is known only after all callbacks have seen it.
            found = trainer.callback_metrics
            losses = {k: f"{float(found[k]):.4f}" for k in ("train_loss", "valid_loss") if k in found}
            self.bar.set_postfix(epoch=f"{done}/{trainer.max_epochs}", **losses)

        def teardown(self, trainer, pl_module, stage):
            if hasattr(self, "bar"):
                self.bar.close()

    return Bar()


def _parts(model, fasta: "Fasta", regions, validation) -> "tuple[pd.DataFrame, pd.DataFrame | None]":
    """Return the regions that were trained on, and those that were held out or None, as `fit` divided them."""
    from ssmseq.dna.regions import hold_out, read_regions

    chosen = read_regions(regions, fasta)
    given = model.validation_fraction if validation is None else validation
    return (chosen, None) if given == 0 else hold_out(chosen, fasta, given)


def _compare(model, fasta: "Fasta", train, held_out, orders: list[int], quiet: bool) -> dict[str, Any]:
    """Return the bits per base of the model and of Markov models of each order on what was held out."""
    from ssmseq.dna import MarkovBaseline
    from ssmseq.dna.tracks import base_bar

    parts = list(held_out[["contig", "start", "end", "strand"]].itertuples(index=False, name=None))
    remark("scoring the validation part ...", quiet=quiet)
    with base_bar(int((held_out["end"] - held_out["start"]).sum()), not quiet) as bar:
        total = total_of(list(score_parts(model, fasta, parts, None, bar)))
    counted, tested = _tokens(fasta, train), _tokens(fasta, held_out)
    markov = {}
    for order in orders:
        remark(f"Markov model of order {order} ...", quiet=quiet)
        markov[order] = MarkovBaseline(order=order, both_strands=both_strands(model)).fit(counted).bits_per_base(tested)
    return {"bases": total.bases, "bits_per_base": total.bits_per_base, "markov": markov}


def _tokens(fasta: "Fasta", regions) -> list[np.ndarray]:
    """Return the tokens of regions, of the strand that they are on, one byte for each letter."""
    from ssmseq.dna.alphabet import reverse_complement_tokens

    found = []
    for contig, start, end, strand in regions[["contig", "start", "end", "strand"]].itertuples(index=False, name=None):
        tokens = fasta.tokens(contig, start, end)
        found.append(reverse_complement_tokens(tokens) if strand == "-" else tokens)
    return found


def _report(model, options, train, held_out, compared: dict[str, Any], outcome: FitOutcome) -> None:
    history = model.history_
    losses = history["valid_loss"].tolist() if "valid_loss" in history else []
    best = min((x for x in losses if math.isfinite(x)), default=None)
    n_bases = [0 if part is None else int((part["end"] - part["start"]).sum()) for part in (train, held_out)]
    if options.get("json"):
        document = {
            "estimator": type(model).__name__,
            "parameters": sum(p.numel() for p in model.network_.parameters()),
            "letters": {"train": n_bases[0], "validation": n_bases[1]},
            "epochs": len(history),
            "best_validation_loss": best,
            "validation": compared or None,
            "bidirectional": model.bidirectional,
            "seconds": round(outcome.seconds, 3),
            "interrupted": outcome.interrupted,
            "folder": options["save"],
        }
        print_json(document)
        return
    size = sum(p.numel() for p in model.network_.parameters())
    print(f"{type(model).__name__}: {size:,} parameters, {n_bases[0]:,} letters to train on, {n_bases[1]:,} held out")
    print(f"epochs {len(history)}, {outcome.seconds:.1f} s")
    if best is not None:
        print(f"best validation loss {best:.4f} bits per base in epoch {losses.index(best) + 1}")
    if compared:
        _print_table(model, compared)
    print(f"saved in {options['save']}")
    sys.stdout.flush()


def _print_table(model, compared: dict[str, Any]) -> None:
    print(f"bits per base of the validation part, {compared['bases']:,} bases:")
    bits = compared["bits_per_base"]
    print(f"  {'this model':<20} {'-' if bits is None else format(bits, '.4f')}")
    for order, value in compared["markov"].items():
        print(f"  {f'Markov, order {order}':<20} {value:.4f}")
    if model.bidirectional:
        print("  this model knows the bases on both sides of each, and a Markov model those before it: do not compare")
