#!/usr/bin/env bash
# One prepared run on a GPU, at most 9 minutes, nothing downloaded: speed and memory of each method, then a study on text.
#
#   OUT=results benchmarks/gpu.sh TEXT [WHEELS]
#
# TEXT is what data.path takes (a .txt file or a folder); WHEELS a folder of wheels that the machine's Python lacks, such as
# hydra-core, omegaconf, antlr4, mauve-text and faiss-cpu. What comes back is in OUT: speed.md, speed.json, and of the study
# results.parquet, report.md, report.html, table.tex and run.log. TOY=1 rehearses all of it on a CPU in a few minutes.
set -euo pipefail
text=$(realpath "${1:?usage: OUT=results benchmarks/gpu.sh TEXT [WHEELS]}")
wheels=${2:+$(realpath "$2")}
out=$(realpath -m "${OUT:-gpu-results}")
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if [ -n "$wheels" ]; then
    site=$(mktemp -d)
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
exec "$python" -m benchmarks.gpu --text "$text" --out "$out" --seconds "${SECONDS_MOST:-520}" ${TOY:+--toy}
