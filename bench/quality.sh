#!/bin/sh
# Quality of the recipes at equal bits, on two domains: books, scores, table and picture, see bench/quality.py --help.
#   bench/quality.sh MODEL.gguf [--chunks 64] [--tune N] [--only RECIPE@BITS...]
exec python3 "$(dirname "$0")/quality.py" "$@"
