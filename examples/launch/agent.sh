#!/bin/sh
# Join once, then measure until told to end: what Slurm, Kubernetes and Ray start on a node. Arguments go to the agent.
#
#   LUTBUILDER_COORDINATOR  HOST:PORT of `lutbuilder serve`
#   LUTBUILDER_AGENT_NAME   this agent's name, the same at every start; the node's name where it is left out
#   LUTBUILDER_JOIN         HOST:PORT of its join port; empty on a loopback without TLS
#   LUTBUILDER_CA           sha256:... of the line that `lutbuilder security token` printed
#   LUTBUILDER_TOKEN_FILE   a file that holds the token of that line, readable by you alone
set -eu
: "${LUTBUILDER_COORDINATOR:?say where the coordinator is, HOST:PORT}"
name=${LUTBUILDER_AGENT_NAME:-$(hostname)}
host=$(printf %s "${LUTBUILDER_COORDINATOR%:*}" | tr 'A-Z:' 'a-z-' | tr -d '[]')
identities=${XDG_CONFIG_HOME:-$HOME/.config}/lutbuilder/coordinators/${host}_${LUTBUILDER_COORDINATOR##*:}/agents

if [ -n "${LUTBUILDER_JOIN:-}" ] && [ ! -s "$identities/$name/identity.pem" ]; then
  lutbuilder-agent join "$LUTBUILDER_JOIN" --name "$name" --coordinator "$LUTBUILDER_COORDINATOR" \
    --ca "${LUTBUILDER_CA:?the sha256:... of the join line}" --token - < "${LUTBUILDER_TOKEN_FILE:?a file with the token}"
fi
exec lutbuilder-agent run --coordinator "$LUTBUILDER_COORDINATOR" --name "$name" "$@"
