"""JSON files, as tests read and change them."""

import json


def read(path):
    return json.loads(path.read_text())


def manifest(out):
    return json.loads((out / "manifest.json").read_text())


def change_json(file, **fields):
    raw = json.loads(file.read_text()) if file.exists() else {}
    raw = {name: value for name, value in (raw | fields).items() if value is not ...}
    file.write_text(json.dumps(raw))
