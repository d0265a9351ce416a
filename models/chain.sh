#!/usr/bin/env bash
# The whole chain on a small network: prune, win the accuracy back from the unpruned network, store
# what is left in 8 bits, and compare every step: size, latency, accuracy. About two minutes.
#
#   bash models/chain.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-chain}

python models/digits.py --out "$out"

echo; echo "== prune: a fifth of the parameters stay, trained to answer as all of them did"
edgeopt prune "$out/model.pt" --model models.digits:build \
  --method channels --target params=0.2 --round-to 8 \
  --recover "$out/digits-train.npz" --epochs 15 \
  --data "$out/digits-test.npz" --metric accuracy --max-drop 0.01 -o "$out/pruned.pt"

echo; echo "== quantize: what is left in 8 bits"
edgeopt quantize "$out/pruned.pt" --data "$out/digits.npz" -o "$out/pruned-int8.onnx"

echo; echo "== compare: every step"
edgeopt export "$out/model.pt" --model models.digits:build --data "$out/digits.npz" \
  -o "$out/float32.onnx" > "$out/export.txt"
edgeopt export "$out/pruned.pt" --data "$out/digits.npz" -o "$out/pruned.onnx" >> "$out/export.txt"
edgeopt compare "$out/float32.onnx" "$out/pruned.onnx" "$out/pruned-int8.onnx" \
  --data "$out/digits-test.npz" --metric accuracy --time 2 --report "$out/report.html"
echo; echo "The report: $out/report.html"
