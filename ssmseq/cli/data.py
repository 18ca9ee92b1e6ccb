"""`ssmseq data`: the data sets, where they are, and whether they are intact."""

import argparse
import sys


def run(words: list[str]) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(prog="ssmseq data", description="List, fetch or verify the data sets.")
    parser.add_argument("action", choices=["list", "fetch", "verify"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets; all by default")
    parser.add_argument("--data_home", metavar="DIR", help="folder to search before SSMSEQ_DATA and the cache")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    options = parser.parse_args(words)

    from ssmseq.cli import NO_DATA, OK
    from ssmseq.cli.tables import print_json
    from ssmseq.datasets import list_datasets

    entries = {entry["name"]: entry for entry in list_datasets(data_home=options.data_home)}
    unknown = [name for name in options.names if name not in entries]
    if unknown:
        parser.error(f"there is no data set {unknown[0]!r}; the data sets are {', '.join(entries)}")
    names = options.names or list(entries)
    act = {"list": lambda name: (entries[name], True), "fetch": _fetch, "verify": _verify}[options.action]
    rows, good = [], True
    for name in names:
        row, fine = act(name) if options.action == "list" else act(name, options.data_home)
        rows.append(row)
        good = good and fine
        if not options.json:
            print(_line(options.action, row, fine))
    if options.json:
        print_json({"action": options.action, "datasets": rows})
    return OK if good else NO_DATA


def _fetch(name: str, data_home: str | None) -> tuple[dict, bool]:
    from ssmseq.datasets import DatasetNotFoundError, fetch_file

    try:
        return {"name": name, "path": str(fetch_file(name, data_home=data_home))}, True
    except (DatasetNotFoundError, ValueError) as error:
        print(f"ssmseq: error: {error}", file=sys.stderr)
        return {"name": name, "path": None, "error": str(error)}, False


def _verify(name: str, data_home: str | None) -> tuple[dict, bool]:
    from ssmseq.datasets import DatasetNotFoundError, verify_dataset

    try:
        found = verify_dataset(name, data_home=data_home)
    except (DatasetNotFoundError, ValueError) as error:
        print(f"ssmseq: error: {error}", file=sys.stderr)
        return {"name": name, "path": None, "ok": False, "error": str(error)}, False
    return found, found["ok"]


def _line(action: str, row: dict, fine: bool) -> str:
    where = row["path"] or "not here"
    if action == "list":
        return f"{row['name']:<18}{row['rows']:>7} x {row['columns']:<4}{row['bytes'] / 1e6:7.1f} MB  {where}"
    return f"{row['name']:<18}{'ok' if fine else 'FAILED':<8}{where}"
