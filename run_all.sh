#!/usr/bin/env bash
# Sets up the environment, runs the notebooks and leaves a report; ./run_all.sh --help says more.
set -euo pipefail

usage() {
  cat <<'END'
Usage: ./run_all.sh [options]

Runs the notebooks on a corpus and leaves reports/<corpus>/index.html. An interrupted run, started again, continues
where it stopped; what has not changed is not run again. Needs Python 3.11 or newer; uses the virtual environment that
is active, or makes .venv in the project's folder.

  --corpus NAME         the corpus: demo (default, bundled), ravdess, … or a folder of your own under SER_DATA
  --labels NAME         the label set (default: the corpus's first)
  --profile quick|full  how much to compute (default: quick for demo, full otherwise)
  --from NN             start at notebook NN
  --only NN,NN          run only these notebooks
  --force               run them even if nothing changed
  --device auto|cpu|cuda
  --allow-incomplete    go on although files of the corpus are missing
  --published           only the notebooks on results, from the predictions that come with the project: no audio, no training
  --publish             afterwards copy notebooks, figures, predictions and tables to where they are committed

  --test [ARGUMENTS]    run the tests instead (arguments go to pytest)
  --results             print the published results again, from their predictions
  --help                this text

SER_DATA is the folder of the raw corpora (default data/raw), SER_WORK that of everything derived (default data/work),
SER_MODELS that of pretrained models (default SER_WORK/pretrained). SER_MIRROR is a folder on a disk that outlives the machine,
such as a mounted Drive (default: none): results and checkpoints are copied there as they come, and back to a new machine.
END
}

stop() {  # CODE TEXT
  echo "run_all.sh: $2" >&2
  exit "$1"
}

# Options are checked before anything is installed.
mode=notebooks
arguments=()
while (($#)); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --test) mode=test; shift; arguments=("$@"); break ;;
    --results) mode=results ;;
    --force | --allow-incomplete | --published | --publish) arguments+=("$1") ;;
    --corpus=* | --labels=* | --profile=* | --from=* | --only=* | --device=*) arguments+=("$1") ;;
    --corpus | --labels | --profile | --from | --only | --device)
      (($# > 1)) || stop 2 "$1 needs a value; see ./run_all.sh --help"
      arguments+=("$1=$2"); shift ;;
    *) stop 2 "unknown option '$1'; see ./run_all.sh --help" ;;
  esac
  shift
done

# Relative folders are meant from where the caller stands.
for name in SER_DATA SER_WORK SER_MODELS SER_MIRROR; do
  [[ -z ${!name:-} || ${!name} == [/~]* ]] || export "$name=$PWD/${!name}"
done
cd "$(dirname "${BASH_SOURCE[0]}")"

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# The active environment, or our own. Conda's base is shared by everything on a machine and is left alone.
if [[ -n ${VIRTUAL_ENV:-} && -x $VIRTUAL_ENV/bin/python ]]; then
  environment=$VIRTUAL_ENV
elif [[ -n ${CONDA_PREFIX:-} && ${CONDA_DEFAULT_ENV:-base} != base && -x $CONDA_PREFIX/bin/python ]]; then
  environment=$CONDA_PREFIX
else
  environment=$PWD/.venv
  # Half-made by an interrupted installation, or its Python is gone: make it again.
  if [[ -e .venv/.ser-unfinished ]] || ! is_new_enough .venv/bin/python; then
    python3=
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
      if is_new_enough "$candidate"; then python3=$candidate; break; fi
    done
    [[ -n $python3 ]] || stop 1 "needs Python 3.11 or newer; found $(python3 --version 2>&1 || true). Install one (python.org, apt, brew), or activate an environment that has it."
    echo "Making .venv with $("$python3" --version)"
    rm -rf .venv
    mkdir .venv
    touch .venv/.ser-unfinished
    "$python3" -m venv .venv || stop 1 "could not make .venv; on Debian and Ubuntu: sudo apt install python3-venv"
  fi
fi
python=$environment/bin/python
is_new_enough "$python" || stop 1 "needs Python 3.11 or newer; $environment has $("$python" --version 2>&1)."

# The stamp says what was installed successfully; it lies inside the environment and goes with it.
install() {  # STAMP TEXT PIP-ARGUMENTS…
  local stamp=$environment/.ser-$1 text=$2 wanted quiet=-q
  if [[ -t 1 ]]; then quiet=; fi
  shift 2
  wanted=$(cat requirements.txt constraints.txt pyproject.toml | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
  [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && return
  echo "$text"
  rm -f "$stamp"
  "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null
  "$python" -m pip install -q -U "pip>=25.1" || stop 1 "could not update pip; is the network there?"
  "$python" -m pip install $quiet "$@" -c constraints.txt || stop 1 "the installation failed (see above); started again it continues."
  # The first import reads gigabytes and compiles: better here than in the first notebook. It also shows that all is well.
  "$python" -c 'import numpy; from helpers import estimators, features, training
features.functionals(numpy.random.default_rng(0).normal(size=16_000).astype("float32"))' ||
    stop 1 "the packages were installed but can't be used (see above); remove $environment and start again."
  echo "$wanted" >"$stamp"
}
install requirements "Installing the packages of requirements.txt into $environment: about 5 GB with PyTorch, which can take minutes" -r requirements.txt
rm -f "$environment/.ser-unfinished"
[[ $mode != test ]] || install test "Installing what the tests need" --group test

export PATH=$environment/bin:$PATH
case $mode in
  # A file's tests stay in one process, in order: they share what is costly to make. More than four processes only cost memory.
  test) exec "$python" -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder ${arguments[@]+"${arguments[@]}"} ;;
  results) exec "$python" tools/results.py ;;
  *) exec "$python" tools/run.py ${arguments[@]+"${arguments[@]}"} ;;
esac
