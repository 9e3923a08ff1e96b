#!/usr/bin/env bash
# Every figure, table and claim of the paper, small, from this repository and the data folder (scripts/get_data.py):
#   bash scripts/reproduce.sh [--smoke] [--jobs=2] [EXPERIMENT…]     see --help
set -euo pipefail
cd "$(dirname "$0")/.."
exec python -m scripts.reproduce "$@"
