# Imports the workflows, publishes them, and starts n8n. The arguments are the words that run its command line.
set -eu
"$1" setup.mjs
"$@" import:credentials --input=import/credentials.json
"$@" import:workflow --input=import/workflows.json
"$@" publish:workflow --id=streamed
"$@" publish:workflow --id=whole
exec "$@" start
