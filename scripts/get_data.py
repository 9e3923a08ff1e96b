"""Gets the models and data that experiments and some tests read and the project does not carry.

  python scripts/get_data.py                    all, from where it is published
  python scripts/get_data.py e2e vader          some
  python scripts/get_data.py --list             what is there, whose licence it has, and where it comes from
  python scripts/get_data.py --from=DIR         from a mirror: DIR/NAME, DIR/data/NAME or DIR/models/NAME

Into DERA_DATA, by default ~/.cache/dera_jax/data. Every file is checked against the checksum in
scripts/data_sets.py, takes its name only when it is whole, and is not fetched again. 9 MB in all.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import requests
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from dera_jax.common.files import make_folder, write_bytes
from dera_jax.common.folders import data_folder
from dera_jax.common.shown import shown
from scripts.data_sets import KNOWN, SETS, DataSet, File

PATIENCE = 30
"""Seconds without a byte after which a server is given up."""


def main(argv: Sequence[str] | None = None) -> int:
    """Gets what is missing; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(KNOWN)} (default: all)")
    parser.add_argument(
        "--from", type=Path, metavar="DIR", dest="mirror", help="a mirror, instead of the network"
    )
    parser.add_argument("--list", action="store_true", help="get nothing, show what is there")
    args = parser.parse_args(argv)
    if strange := [name for name in args.names if name not in KNOWN]:
        return _fail(f"unknown data {shown(strange[0], 80)!r}; known: {', '.join(KNOWN)}")
    chosen = [KNOWN[name] for name in dict.fromkeys(args.names)] or SETS
    folder = data_folder()
    if args.list:
        print(f"{folder}:", *(_told(each, folder) for each in chosen), sep="\n")
        return 0
    failed = 0
    for each in chosen:
        try:
            got = get(each, folder, args.mirror)
        except ValueError as error:
            failed = _fail(f"{each.name}: {error}")
        else:
            print(f"{folder / each.name}: {f'{got} files' if got else 'is there'}")
    return failed


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def is_there(name: str, folder: Path | str) -> bool:
    """Whether all files of a set are there, by their sizes."""
    paths = ((Path(folder) / name / file.name, file.size) for file in KNOWN[name].files)
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)


def get(data: DataSet, folder: Path, mirror: Path | None = None) -> int:
    """Gets the files of a set that are not there, or not as they must be, and returns how many.

    Raises:
      ValueError: one cannot be had; those before it have been.
    """
    lacking = [file for file in data.files if not _is_whole(folder / data.name / file.name, file)]
    if not lacking:
        return 0
    make_folder(folder / data.name)
    made = {}
    if mirror is None and data.make and not all(file.places for file in lacking):
        made = data.make({source.name: download(source) for source in data.sources})
    for file in lacking:
        content = _copy(data, file, mirror) if mirror else made.get(file.name) or download(file)
        _check(content, file, "what is made of its sources" if file.name in made else str(mirror))
        write_bytes(folder / data.name / file.name, content)
    return len(lacking)


def _is_whole(path: Path, file: File) -> bool:
    return path.is_file() and path.stat().st_size == file.size and _sha256(_read(path, file)) == file.sha256


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read(path: Path, file: File) -> bytes:
    with open(path, "rb") as opened:
        return opened.read(file.size + 1)


def _copy(data: DataSet, file: File, mirror: Path) -> bytes:
    places = [mirror / part / data.name / file.name for part in (".", "data", "models")]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ValueError(f"no {file.name} in {shown(mirror, 200)}")
    return _read(found, file)


def _check(content: bytes, file: File, where: str) -> None:
    if (found := _sha256(content)) != file.sha256:
        raise ValueError(
            f"{file.name}: {where} has {len(content)} bytes with the checksum {found[:12]}…, "
            f"expected {file.size} with {file.sha256[:12]}…"
        )


def download(file: File) -> bytes:
    """Returns a file from the first place that has it.

    Raises:
      ValueError: none has, with what the last one said.
    """
    said = None
    for url in file.urls():
        try:
            content = _request(url, file)
            _check(content, file, url)
            return content
        except (requests.RequestException, ValueError) as error:
            said = (
                f"{file.name}: {url}: {shown(error, 200)}"
                if not isinstance(error, ValueError)
                else str(error)
            )
    raise ValueError(said)


def _request(url: str, file: File) -> bytes:
    """Returns what a server sends; no more than one byte beyond what is expected."""
    with requests.get(url, stream=True, timeout=PATIENCE) as answer:
        answer.raise_for_status()
        parts = []
        with tqdm(total=file.size, desc=file.name, unit="B", unit_scale=True, leave=False) as bar:
            for part in answer.iter_content(1 << 16):
                parts.append(part)
                bar.update(len(part))
                if bar.n > file.size:
                    break
    return b"".join(parts)


def _told(data: DataSet, folder: Path) -> str:
    lacking = [file.name for file in data.files if not _is_whole(folder / data.name / file.name, file)]
    state = (
        "there"
        if not lacking
        else f"lacks {', '.join(lacking)}"
        if len(lacking) < len(data.files)
        else "missing"
    )
    size = sum(file.size for file in data.files) / 1e6
    places = {place.partition("/")[0] + "/" + place.split("/")[1].partition("@")[0]
              for file in (*data.files, *data.sources) for place in file.places[:1]}  # fmt: skip
    return (
        f"  {data.name:13} {state:8} {size:4.1f} MB  {data.licence}; {data.told}; {', '.join(sorted(places))}"
    )


if __name__ == "__main__":
    sys.exit(main())
