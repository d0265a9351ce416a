#!/usr/bin/env bash
# What `make demo` runs: every step is a command that works as it is shown, from this folder.
set -euo pipefail
cd "$(dirname "$0")/.."

show() {
  printf '\n\033[1m$ %s\033[0m\n' "$*"
  "$@"
}

show python models/digits.py --out demo
show edgeopt inspect demo/model.pt
for bits in 8 4; do
  show edgeopt quantize demo/model.pt --model models.digits:build --data demo/digits.npz \
    --bits "$bits" -o "demo/model-int$bits.onnx"
  show python models/digits.py --score "demo/model-int$bits.onnx" demo/digits-test.npz
done
