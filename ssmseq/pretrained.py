"""Read networks that other projects have saved, and write Mamba and Mamba-2 for transformers.

A folder holds config.json and the weights, in model.safetensors (or its shards) or in pytorch_model.bin, which is read
as tensors alone: no code in it runs. Nothing is guessed: a tensor without a place, a place without a tensor and a shape
that does not fit are refused, all of them by name.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssmseq.formats import Settings, describe, recognise
from ssmseq.nn.language_model import LanguageModelNetwork

CONFIG, WEIGHTS, INDEX, PICKLE = "config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"


def load_pretrained(path: str | os.PathLike) -> LanguageModelNetwork:
    """Read a network from a folder of another project's format, which its config.json tells.

    ======================  ============================================================================================
    transformers            ``MambaForCausalLM`` and ``Mamba2ForCausalLM`` (model_type "mamba", "mamba2").
    mamba_ssm               ``MambaLMHeadModel`` with Mamba or Mamba-2 layers, feed-forward nets, and attention layers
                            that have neither rotary embeddings nor a convolution (config.json with d_model, ssm_cfg).
    Caduceus                Ph and PS (model_type "caduceus"), as `CaduceusNetwork`.
    ======================  ============================================================================================

    Parameters
    ----------
    path : str or path
        Folder of config.json and one of model.safetensors, model.safetensors.index.json with its shards, and
        pytorch_model.bin, looked for in this order.

    Returns
    -------
    LanguageModelNetwork
        In evaluation mode, on the CPU, in the dtype of the file.

    Raises
    ------
    FileNotFoundError
        If config.json or the weights are missing.
    ValueError
        If the format is unknown, a setting is not supported, a file is damaged or holds more than tensors, or tensors
        and network do not match.

    Notes
    -----
    Published configurations of ``mamba2`` hold keys that transformers does not read, such as ``norm_before_gate``: they
    are not read here either, so that both compute the same.

    References
    ----------
    Gu and Dao, "Mamba", arXiv 2312.00752; Dao and Gu, "Transformers are SSMs", arXiv 2405.21060; Schiff et al.,
    "Caduceus", arXiv 2403.03234.
    """
    folder = Path(path)
    values = _read_json(folder / CONFIG)
    tensors, source = _read_tensors(folder)
    try:
        config = Settings(values, "")
        layout = recognise(config)
        found, names, problems = _rename(tensors, layout.renames)
        with torch.device("meta"):  # sizes are checked before any memory is taken
            network = layout.build(config, found.get("complement"))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    problems += _match(found, names, network)
    if problems:
        raise ValueError(f"{source} does not fit {layout.title} as {CONFIG} describes it:\n  " + "\n  ".join(problems))
    _fill(network, found)
    return network.eval()


def save_pretrained(network: LanguageModelNetwork, path: str | os.PathLike) -> None:
    """Write a network of Mamba or Mamba-2 layers as transformers reads it: config.json and model.safetensors.

    Parameters
    ----------
    network : LanguageModelNetwork
        All of its mixers are `Mamba`, or all `Mamba2`, of the same sizes; no feed-forward nets.
    path : str or path
        Folder, made if missing; the two files in it are replaced. Dropout, which transformers' models have not, is
        left out.

    Raises
    ------
    ValueError
        If transformers has no model of this kind.
    """
    from safetensors.torch import save_file

    folder, config = Path(path), describe(network)
    tensors = {"backbone.embeddings.weight" if k == "embedding.weight" else k: v for k, v in network.named_parameters()}
    folder.mkdir(parents=True, exist_ok=True)
    parts = [folder / f"{name}.part" for name in (WEIGHTS, CONFIG)]  # so that no reader ever sees half a file
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, parts[0], metadata={"format": "pt"})
    parts[1].write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for part in parts:
        os.replace(part, part.with_suffix(""))


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no pretrained network: {path.name} is missing")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _read_tensors(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """Return the tensors by their names in the file, and the path to blame."""
    if (path := folder / WEIGHTS).is_file():
        return _read_safetensors(path), path
    if (path := folder / INDEX).is_file():
        return _read_shards(path), path
    if (path := folder / PICKLE).is_file():
        return _read_pickle(path), path
    raise FileNotFoundError(f"{folder} holds no weights: {WEIGHTS}, {INDEX} and {PICKLE} are missing")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _read_shards(index: Path) -> dict[str, Tensor]:
    places = Settings(_read_json(index), f"{index}: ").section("weight_map").values
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(map(str, places.values()))):
        shard = index.parent / name
        if shard.name != name or not shard.is_file():
            raise FileNotFoundError(f"{index} names {name!r}, which is not a file beside it")
        tensors |= _read_safetensors(shard)
    if wrong := sorted(set(tensors) ^ set(places)):
        raise ValueError(f"{index} and its files do not hold the same tensors: {', '.join(wrong)}")
    return tensors


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a hostile or damaged file makes of the reader, the file is to blame
        raise ValueError(f"{path} holds more than tensors, or is damaged, and is not opened") from error
    if not isinstance(tensors, dict) or not all(isinstance(v, Tensor) for v in tensors.values()):
        raise ValueError(f"{path} must hold tensors by name, and nothing else")
    return tensors


def _rename(tensors: dict[str, Tensor], renames: Sequence[tuple[str, str]]) -> tuple[dict, dict, list[str]]:
    """Return the tensors by their names here, those names' names in the file, and what is wrong with the latter."""
    found, names, problems = {}, {}, []
    for name, tensor in tensors.items():
        fits = ((re.fullmatch(pattern, name), new) for pattern, new in renames)
        here = next((match.expand(new) for match, new in fits if match), None)
        if here is None:
            problems.append(f"{name}: has no place in the network")
        elif here in found and not torch.equal(found[here], tensor):
            problems.append(f"{name}: differs from {names[here]}, to which it is tied")
        else:
            found[here], names[here] = tensor, name
    return found, names, problems


def _match(found: dict[str, Tensor], names: dict[str, str], network: LanguageModelNetwork) -> list[str]:
    """Take out what the network holds once, and return what is left over, missing or of another shape."""
    problems = []
    if network.lm_head is None and "lm_head.weight" in found:
        head = found.pop("lm_head.weight")
        if not torch.equal(found.setdefault("embedding.weight", head), head):
            problems.append(f"{names['lm_head.weight']}: differs from the embedding, to which {CONFIG} ties it")
    if getattr(network, "complement", None) is not None:
        found.pop("complement", None)
    wanted = network.state_dict()
    for here in [*wanted, *sorted(set(found) - set(wanted))]:
        name = names.get(here, here)
        if here not in found:
            problems.append(f"{name}: is missing")
        elif here not in wanted:
            problems.append(f"{name}: has no place in the network")
        elif found[here].shape != wanted[here].shape or not found[here].is_floating_point():
            problems.append(
                f"{name}: must be {tuple(wanted[here].shape)} of floating point, got {tuple(found[here].shape)} of "
                f"{found[here].dtype}"
            )
    return problems


def _fill(network: LanguageModelNetwork, found: dict[str, Tensor]) -> None:
    marks = {name: vars(parameter) for name, parameter in network.named_parameters()}  # such as _no_weight_decay
    network.load_state_dict({k: v.contiguous() for k, v in found.items()}, assign=True)
    for name, parameter in network.named_parameters():
        vars(parameter).update(marks[name])
