#!/usr/bin/env bash
# Holds the tree against the house rules: bash scripts/check.sh [--fix]. Rules and reasons: docs/design.md.
cd "$(dirname "$0")/.." && exec python3 scripts/check.py "$@"
