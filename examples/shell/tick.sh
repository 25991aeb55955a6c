#!/bin/sh
# A process that is not Python: any command runs, is kept running, and its output is kept.
#
#     micro run examples/shell --command "sh tick.sh" --env EVERY=1
#     micro logs -f shell
trap 'echo "told to stop"; exit 0' TERM
number=0
while true; do
  number=$((number + 1))
  echo "tick $number of $MICRO_SERVICE_NAME"
  sleep "${EVERY:-1}" &
  wait $!
done
