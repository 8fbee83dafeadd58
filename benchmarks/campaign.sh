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
# Needs a Python with torch (2.6 or newer), transformers and memcalc's dependencies (PYTHON=… to choose one); memcalc itself is
# taken from this checkout. Leaves <campaign>.tar.gz, <campaign>.json (every difference) and <campaign>.md (the summary).
# Unpack the archive into measurements/ to commit its records.
#
# WHEELS=dir  installs the wheels of a folder for this run alone, fetching nothing. Where the GPU machine has no network, make
#             that folder on one that has, for the GPU machine's Python (here 3.12), and leave torch itself out of it:
#
#   pip download --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
#     --platform manylinux2014_x86_64 -d wheels pydantic typer rich pyyaml numpy nvidia-ml-py     # what memcalc needs; NVML
#   pip wheel --no-deps -c constraints.txt -w wheels bitsandbytes torchao lion-pytorch came-pytorch sophia-opt galore-torch \
#     schedulefree apollo-torch prodigyopt adam-mini muon-optimizer lomo-optim peft accelerate    # optimizers, LoRA
#
# The second may be left out: a case whose package is missing is recorded as such, and RETRY=1 runs it again once it is there.
# Add transformers to the first if the machine lacks it.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
campaign=${1:-$root/configs/campaigns/gpu.yaml}
out=${2:-campaign-out}
minutes=${3:-10}
python=${PYTHON:-python3}
name=$(basename "$campaign" .yaml)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

[ -f "$campaign" ] || { echo "$campaign: no such campaign; there are $(cd "$root/configs/campaigns" && echo ./*.yaml)" >&2; exit 2; }
seconds=$((minutes * 60 - 40))
[ "$seconds" -ge 20 ] || { echo "$minutes minutes are too few; give 1 or more" >&2; exit 2; }
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$work/site" "$WHEELS"/*.whl
  export PYTHONPATH="$PYTHONPATH:$work/site"
fi
"$python" - <<'PY' || { echo "carry what is missing as wheels: see the head of $0" >&2; exit 2; }
import importlib.util
import sys

absent = lambda names: [name for name in names.split() if importlib.util.find_spec(name) is None]
if needed := absent("torch transformers pydantic typer rich yaml numpy"):
    sys.exit(f"{sys.executable} lacks {', '.join(needed)}")
wanted = "pynvml peft bitsandbytes torchao lion_pytorch came_pytorch sophia_opt galore_torch schedulefree apollo_torch prodigyopt"
if missing := absent(f"{wanted} adam_mini muon lomo_optim"):
    print(f"without {', '.join(missing)} their cases are recorded as missing packages", file=sys.stderr)
PY

# what is committed and what an earlier run left count as done
[ -d "$root/measurements/$name" ] && cp -r "$root/measurements/$name" "$work/$name"
[ -f "$out/$name.tar.gz" ] && tar -xzf "$out/$name.tar.gz" -C "$work"
mkdir -p "$work/$name"

status=0
# no case begins in the last minute; one that would not end by itself is ended, and its records so far stand
timeout --signal=INT --kill-after=15 "$seconds" \
  "$python" -m memcalc measure --campaign "$campaign" --out "$work/$name" --limit "$((seconds > 80 ? seconds - 60 : 20))" ${RETRY:+--retry} ||
  status=$?
[ "$status" -eq 124 ] && echo "stopped after $seconds s; run again to go on" >&2

records=$(find "$work/$name" -name '*.json' -o -name '*.json.gz' | wc -l)
[ "$records" -gt 0 ] || { echo "nothing was recorded" >&2; exit "$status"; }
tar -czf "$out/.$name.tar.gz" -C "$work" "$name"
mv "$out/.$name.tar.gz" "$out/$name.tar.gz"
"$python" -m memcalc verify "$work/$name" --format json > "$out/$name.json" || true
"$python" -m memcalc verify "$work/$name" --format markdown > "$out/$name.md" || true
echo "$records records in $out/$name.tar.gz" >&2
[ "$status" -eq 124 ] && exit 0
exit "$status"
