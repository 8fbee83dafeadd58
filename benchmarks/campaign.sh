#!/usr/bin/env bash
# Run a campaign for at most ten minutes and pack what it measured into one archive. Run it again to go on: cases that have
# a record are not run twice, wherever the last run was stopped.
#
#   benchmarks/campaign.sh [CAMPAIGN.yaml] [OUT] [MINUTES]
#
# CAMPAIGN  configs/campaigns/gpu.yaml by default
# OUT       where the archive and the summary go, ./campaign-out by default; an archive of an earlier run there is gone on with
# MINUTES   when to stop, 10 by default; the last 40 seconds are for packing
#
# Needs a Python with torch and memcalc's dependencies (PYTHON=… to choose one); memcalc itself is taken from this checkout,
# so that nothing has to be installed or fetched. Leaves <campaign>.tar.gz, <campaign>.json (every difference) and
# <campaign>.md (the summary). Unpack the archive into measurements/ to commit its records.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
campaign=${1:-$root/configs/campaigns/gpu.yaml}
out=${2:-campaign-out}
minutes=${3:-10}
python=${PYTHON:-python3}
name=$(basename "$campaign" .yaml)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

[ -f "$campaign" ] || { echo "$campaign: no such campaign; there are $(cd "$root/configs/campaigns" && echo ./*.yaml)" >&2; exit 2; }
"$python" -c 'import torch, pydantic, typer, yaml' || { echo "$python lacks torch or memcalc's dependencies" >&2; exit 2; }
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# what is committed and what an earlier run left count as done
[ -d "$root/measurements/$name" ] && cp -r "$root/measurements/$name" "$work/$name"
[ -f "$out/$name.tar.gz" ] && tar -xzf "$out/$name.tar.gz" -C "$work"
mkdir -p "$work/$name"

seconds=$((minutes * 60 - 40))
[ "$seconds" -ge 20 ] || { echo "$minutes minutes are too few; give 1 or more" >&2; exit 2; }
status=0
# no case begins in the last minute; one that would not end by itself is ended, and its records so far stand
timeout --signal=INT --kill-after=15 "$seconds" \
  "$python" -m memcalc measure --campaign "$campaign" --out "$work/$name" --limit "$((seconds > 80 ? seconds - 60 : 20))" ||
  status=$?
[ "$status" -eq 124 ] && echo "stopped after $seconds s; run again to go on" >&2

tar -czf "$out/.$name.tar.gz" -C "$work" "$name"
mv "$out/.$name.tar.gz" "$out/$name.tar.gz"
"$python" -m memcalc verify "$work/$name" --format json > "$out/$name.json" || true
"$python" -m memcalc verify "$work/$name" --format markdown > "$out/$name.md" || true
echo "$(find "$work/$name" -name '*.json' -o -name '*.json.gz' | wc -l) records in $out/$name.tar.gz" >&2
[ "$status" -eq 124 ] && exit 0
exit "$status"
