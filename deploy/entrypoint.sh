#!/bin/sh
# Takes the Redis password from a file where there is one (it never stands in a command line), then becomes the command.
set -eu
if [ -z "${TERSELY_REDIS_PASSWORD:-}" ] && [ -r "${TERSELY_REDIS_PASSWORD_FILE:-}" ]; then
  TERSELY_REDIS_PASSWORD=$(cat "$TERSELY_REDIS_PASSWORD_FILE")
  export TERSELY_REDIS_PASSWORD
fi
exec "$@"
