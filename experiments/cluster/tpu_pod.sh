#!/bin/bash
# One run on all hosts of a Cloud TPU pod slice:
#
#   ZONE=us-central2-b experiments/cluster/tpu_pod.sh my-tpu \
#     --flagfile=imagenet.cfg --data_dir=/data/imagenet --workdir=/shared/imagenet-ssil
#
# It expects this repository on every host in ~/ssil_jax, with its requirements and
# jax[tpu] in ~/ssil_jax/.venv; --data_dir on every host, or on a file system that all
# mount (Filestore, a read-only disk, GCS through gcsfuse); --workdir on one that all mount
# and may write to. The hosts find each other by themselves.
set -eu

name=$1
shift
# Quoted twice: for the shell of the hosts, and so that it outlives this connection.
printf -v flags ' %q' "$@"
command="cd ~/ssil_jax && nohup .venv/bin/python experiments/run.py$flags"
command+=" > ~/ssil_jax.log 2>&1 < /dev/null &"
gcloud compute tpus tpu-vm ssh "$name" --zone="$ZONE" --worker=all --command="$command"
echo "started; process 0 is the host that shows progress:"
echo "  gcloud compute tpus tpu-vm ssh $name --zone=$ZONE --worker=0 \\"
echo "    --command='tail -n 20 ~/ssil_jax.log'"
echo "to stop after a checkpoint, on one host or on all:"
echo "  gcloud compute tpus tpu-vm ssh $name --zone=$ZONE --worker=0 \\"
echo "    --command='pkill -TERM -f experiments/run.py'"
