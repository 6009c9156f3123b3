#!/bin/bash
# One run as several processes on this machine, one for each GPU:
#
#   experiments/cluster/one_machine.sh 8 --flagfile=imagenet.cfg --data_dir=DIR
#
# A single process that uses all GPUs (experiments/run.py without this script) is simpler,
# and no slower unless its Python threads, which decode images, hold it back. On a machine
# without GPUs the processes share its cores. Their output goes to LOGS/process-N.log,
# LOGS from the environment or else "logs". When one ends early, the others stop, too.
set -u

count=$1
shift
logs=${LOGS:-logs}
here=$(dirname "$(readlink -f "$0")")
port=${PORT:-$((20000 + RANDOM % 10000))}
mkdir -p "$logs"

gpus=()
if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
  IFS=, read -ra gpus <<< "$CUDA_VISIBLE_DEVICES" # those that are granted
fi

pids=()
# Ctrl-C and SIGTERM reach the first one, and all stop after the same step.
trap 'kill -TERM "${pids[0]}"' INT TERM
for ((number = 0; number < count; number++)); do
  # A process of its own group, which Ctrl-C at the terminal does not reach twice.
  CUDA_VISIBLE_DEVICES=${gpus[number]:-$number} setsid "${PYTHON:-python}" "$here/../run.py" "$@" \
    --coordinator_address="127.0.0.1:$port" --num_processes="$count" \
    --process_id="$number" > "$logs/process-$number.log" 2>&1 &
  pids+=($!)
done

code=0
for number in "${!pids[@]}"; do
  # A signal to this script interrupts `wait`; the process is still there then.
  while true; do
    wait "${pids[$number]}"
    ended=$?
    kill -0 "${pids[$number]}" 2> /dev/null || break
  done
  if ((ended)); then
    code=$ended
    echo "process $number ended with $ended: $(tail -n 1 "$logs/process-$number.log")" >&2
  fi
done
exit "$code"
