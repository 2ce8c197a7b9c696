# Runs the shared test server and ends it once no process has used it for about ten seconds.
# usage: sh -c … supervise DIRECTORY SERVER [ARGUMENT…]
cd "$1" || exit
shift
"$@" &
server=$!
trap 'kill -INT "$server"' HUP INT TERM
idle=0
while kill -0 "$server" 2>/dev/null; do
    sleep 2
    # Got for a moment only: a process that comes now waits for it.
    if flock -n -x users.lock true; then idle=$((idle + 1)); else idle=0; fi
    [ "$idle" -ge 5 ] || continue
    exec 9<start.lock
    # With it nobody can come; if somebody just did, go on.
    if flock -n -x 9 && flock -n -x users.lock true; then
        kill -INT "$server"
        wait "$server"
        exit
    fi
    exec 9<&-
    idle=0
done
wait "$server"
