#!/bin/sh
# Blocks a release whose model is not shown to be good enough.
#
#   by hand, or first in a release script:   ARTIFACT=dist/reviews-mobile sh pre-release.sh
#   as a git hook, for pushed tags v*:       cp pre-release.sh .git/hooks/pre-push
#
# BASELINE, when set, is the artifact that was released last.
set -u
ARTIFACT=${ARTIFACT:-dist/reviews-mobile}
BASELINE=${BASELINE:-}

if [ "${0##*/}" = pre-push ]; then
  # git says what is pushed on standard input: local ref, its id, remote ref, its id
  grep -v '^(delete)' | grep -q ' refs/tags/v' || exit 0
fi

judged() {
  exporter "$@"
  code=$?
  case $code in
    0) return ;;
    1) echo "pre-release: blocked, the model is not good enough" >&2 ;;
    3) echo "pre-release: blocked, there is too little evidence to release" >&2 ;;
    *) echo "pre-release: blocked, the model could not be judged" >&2 ;;
  esac
  exit $code
}

judged check "$ARTIFACT" </dev/null
if [ -n "$BASELINE" ]; then judged compare "$BASELINE" "$ARTIFACT" </dev/null; fi
