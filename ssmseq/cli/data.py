"""`ssmseq data`: list, fetch or verify the benchmark data sets."""

from pathlib import Path
from typing import Any

from ssmseq.cli.contract import DATA_MISSING, OK, DataMissingError, Parser, add_common_options, print_json, remark
from ssmseq.cli.tables import fetching
from ssmseq.datasets import DatasetNotFoundError, fetch_file, list_datasets, verify_dataset


def run(argv: list[str]) -> int:
    """Run ``ssmseq data``."""
    parser = Parser(
        prog="ssmseq data",
        description="List the benchmark data sets; fetch them, which fetching what is found nowhere; or verify the "
        "checksums of those that are here. Searched are --data_home, the folder in SSMSEQ_DATA, and the cache.",
    )
    parser.add_argument("action", choices=("list", "fetch", "verify"), help="what to do")
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help="data sets; all by default (verify: all that are here)"
    )
    parser.add_argument("--data_home", metavar="DIR", help="folder to search first")
    add_common_options(parser)
    options = parser.parse_args(argv)
    if options.data_home is not None and not Path(options.data_home).expanduser().is_dir():
        parser.error(f"--data_home {options.data_home} is not a folder")
    entries = {e["name"]: e for e in list_datasets(data_home=options.data_home)}
    unknown = [n for n in options.names if n not in entries]
    if unknown:
        parser.error(f"no data set is called {', '.join(unknown)}; choose from {', '.join(entries)}")

    entries = {n: entries[n] for n in options.names or entries}
    return {"list": _list, "fetch": _fetch, "verify": _verify}[options.action](entries, options)


def _list(entries: dict[str, dict], options) -> int:
    if options.json:
        print_json({"datasets": list(entries.values())})
        return OK
    header = ("name", "rows", "columns", "MB", "found at", "licence")
    rows = [
        (e["name"], str(e["rows"]), str(e["columns"]), f"{e['bytes'] / 1e6:.1f}", e["path"] or "-", e["licence"])
        for e in entries.values()
    ]
    _print_table([header, *rows], numeric=(1, 2, 3))
    return OK


def _fetch(entries: dict[str, dict], options) -> int:
    results = [_fetch_one(name, options) for name in entries]
    if options.json:
        print_json({"datasets": results})
    else:
        _print_table([(r["name"], r["path"]) for r in results if r["path"]])
    return DATA_MISSING if any(r["error"] for r in results) else OK


def _fetch_one(name: str, options) -> dict[str, Any]:
    try:
        with fetching(quiet=options.quiet):
            path = fetch_file(name, data_home=options.data_home)
    except (DatasetNotFoundError, DataMissingError) as error:
        remark(f"ssmseq: error: {name}: {error}")
        return {"name": name, "path": None, "error": str(error)}
    return {"name": name, "path": str(path), "error": None}


def _verify(entries: dict[str, dict], options) -> int:
    names = options.names or [n for n, e in entries.items() if e["path"] is not None]
    if not names:
        raise DatasetNotFoundError("no data set was found to verify: fetch one first, or set SSMSEQ_DATA to its folder")
    results = [_verify_one(name, options) for name in names]
    if options.json:
        print_json({"datasets": results})
    else:
        _print_table([(r["name"], "ok" if r["ok"] else "WRONG", r["path"]) for r in results if r["path"]])
    return OK if all(r["ok"] for r in results) else DATA_MISSING


def _verify_one(name: str, options) -> dict[str, Any]:
    try:
        result = verify_dataset(name, data_home=options.data_home)
    except (DatasetNotFoundError, ValueError) as error:
        remark(f"ssmseq: error: {name}: {error}")
        keys = ("path", "sha256", "expected_sha256", "rows", "expected_rows")
        return {"name": name, **dict.fromkeys(keys), "ok": False, "error": str(error)}
    wrong = None
    if not result["ok"]:
        wrong = (
            f"{result['path']} has {result['rows']} rows and sha256 {result['sha256']}, expected "
            f"{result['expected_rows']} and {result['expected_sha256']}; remove it and fetch {name} again"
        )
        remark(f"ssmseq: error: {name}: {wrong}")
    return {**result, "error": wrong}


def _print_table(rows: list[tuple[str, ...]], *, numeric: tuple[int, ...] = ()) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [c.rjust(w) if i in numeric else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells).rstrip())
