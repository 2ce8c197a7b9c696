#!/bin/sh
# Requests made up from the service's own document, thousands of them, against a service of their own: as an
# administrator and as a user, with every check of Schemathesis but one.
#
#   tests/fuzz/run.sh BINARY     SEED=n repeats a run, EXAMPLES=n (per operation; 40) makes it longer
#
# One check is left out, since it cannot be left out for single operations: it wants `Allow` to name the methods that the
# document has at a path, but a code may be spelled like the last segment of /v1/coupons/assign, assign-batch, check or
# codes, so GET is allowed there. With it, those four are all that it finds; tests/it/bad_input/targets.rs knows the exact
# `Allow` of every path.
#
# Fails on any finding, on an error in the service's log, and if a run was not worth its name (fewer than CASES cases).
# Schemathesis lives in a virtual environment in the user's cache, made on the first run.
set -eu
case $1 in
    /*) binary=$1 ;;
    *) binary=$PWD/$1 ;;
esac
CDPATH='' cd -- "$(dirname -- "$0")"

VERSION=4.32.5
CASES=1000
seed=${SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
examples=${EXAMPLES:-40}

say() { printf '%s\n' "fuzz: $*" >&2; }
fail() { say "error: $*"; exit 1; }

venv=${XDG_CACHE_HOME:-${HOME:?}/.cache}/couponbook/schemathesis-$VERSION
if [ ! -x "$venv/bin/schemathesis" ]; then
    say "installing Schemathesis $VERSION into $venv"
    python3 -m venv "$venv" || fail "python3 with venv is needed (Debian: apt-get install python3-venv)"
    "$venv/bin/pip" install --quiet "schemathesis==$VERSION" || { rm -rf "$venv"; fail "it could not be installed"; }
fi

work=$(mktemp -d)
chmod a+x "$work" # started by root, PostgreSQL runs as somebody else
pid=''
clean_up() {
    [ -z "$pid" ] || { kill "$pid" 2>/dev/null && wait "$pid" || true; }
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 1' INT TERM

COUPONBOOK_RATE_LIMITS=off COUPONBOOK_SECURITY_BUDGETS=off COUPONBOOK_REGISTRATION=on COUPONBOOK_LOG=warn \
    "$binary" up --demo --listen 127.0.0.1:0 --data-dir "$work/data" >"$work/out" 2>"$work/log" &
pid=$!
tries=0
until grep -q 'API key' "$work/out"; do
    kill -0 "$pid" 2>/dev/null || { cat "$work/log" >&2; fail "the service did not start"; }
    tries=$((tries + 1))
    [ "$tries" -lt 600 ] || fail "the service is not ready"
    sleep 0.2
done
url=$(sed -n 's/^couponbook ready on //p' "$work/out")
key=$(sed -n 's/^ *API key *//p' "$work/out")

# token EMAIL: the access token of a demo account.
token() {
    "$venv/bin/python" - "$url" "$1" <<'PYTHON'
import json, sys, urllib.request
url, email = sys.argv[1:]
body = json.dumps({"email": email, "password": "coupon-book-demo"}).encode()
request = urllib.request.Request(url + "/v1/auth/login", body, {"Content-Type": "application/json"})
print(json.load(urllib.request.urlopen(request))["access_token"])
PYTHON
}

found=0
# round NAME HEADER MINIMUM ARGUMENT…: one run; at least MINIMUM cases.
round() {
    name=$1 header=$2 minimum=$3
    shift 3
    say "as $name, SEED=$seed"
    status=0
    (cd "$work" && "$venv/bin/schemathesis" --config-file "$OLDPWD/schemathesis.toml" run "$url/openapi.json" \
        --header "$header" --checks all --exclude-checks allow_header_conformance --seed "$seed" --max-examples "$examples" --continue-on-failure \
        --no-color "$@") >"$work/$name.txt" 2>&1 || status=$?
    sed -n '/^=.* FAILURES/,$p; /^=.* ERRORS/,$p' "$work/$name.txt" >&2
    tail -n 15 "$work/$name.txt" >&2
    [ "$status" -eq 0 ] || found=1
    cases=$(sed -n 's/^ *\([0-9]*\) generated.*/\1/p' "$work/$name.txt" | tail -n 1)
    say "as $name: ${cases:-0} cases"
    [ "${cases:-0}" -ge "$minimum" ] || fail "as $name: only ${cases:-0} of $minimum cases"
}

# A run must not take its own key away, so keys are deleted in a run of somebody who needs none.
round administrator "X-Api-Key: $key" "$CASES" --exclude-path '/v1/api-keys/{id}'
round keys "Authorization: Bearer $(token admin@example.com)" 1 --include-path '/v1/api-keys/{id}'
round user "Authorization: Bearer $(token user1@example.com)" "$CASES"

kill -0 "$pid" 2>/dev/null || fail "the service has died: $(tail -n 5 "$work/log")"
if grep -E 'ERROR|panicked' "$work/log" >&2; then
    fail "the service's log has errors"
fi
[ "$found" -eq 0 ] || fail "there were findings; SEED=$seed repeats the run"
say "no findings; SEED=$seed repeats the run"
